"""Small stored kernels."""

import torch

from kernelmem import KernelStore

FACTS = {"model": "a", "data": {"rows": 5, "sha256": "b"}}


def kernel(n, m, dtype, seed=0, *, symmetric):
    K = torch.randn(n, m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return K + K.T if symmetric else K


def fill(store, K):
    for i, j in store.missing():
        store.put(i, j, K[store.layout.rows_of(i), store.layout.columns_of(j)])
    return store


def stored(path, K, *, tile=2, symmetric=False, facts=FACTS):
    """Return a store of K, opened for reading."""
    with KernelStore.create(path, facts, *K.shape, tile=tile, dtype=K.dtype, symmetric=symmetric) as store:
        fill(store, K)
    return KernelStore.open(path)
