"""A stored kernel equals the array of which it was made, whatever its tiles; refusals of ``put`` and of reading."""

from itertools import count, permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem import InputError, KernelStore, NumericalError
from tests.kernels.store.stores import FACTS, kernel, stored
from tests.profiles import examples

NUMBERS = count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stores")


@examples(0.3)
@given(st.data(), st.integers(1, 6), st.integers(1, 7), st.sampled_from([torch.float32, torch.float64]), st.booleans())
def test_a_store_is_the_array(folder, data, n, tile, dtype, symmetric):
    m = n if symmetric else data.draw(st.integers(1, 6))
    K = kernel(n, m, dtype, data.draw(st.integers(0, 99)), symmetric=symmetric)
    path = folder / "law.sqlite"
    path.unlink(missing_ok=True)
    with stored(path, K, tile=tile, symmetric=symmetric) as store:
        start = data.draw(st.integers(0, n - 1))
        stop = data.draw(st.integers(start + 1, n))
        assert torch.equal(store.rows(start, stop), K[start:stop])
        assert np.array_equal(np.asarray(store), K.numpy())
        assert torch.equal(torch.cat([block for _, block in store.blocks()]), K)
        rows, columns = data.draw(st.lists(st.integers(0, n - 1), min_size=1)), [0, m - 1]
        assert torch.equal(store.entries(rows, columns), K[rows][:, columns])
        assert torch.equal(store.entries(rows), K[rows])
        v = torch.randn(m, 2, dtype=torch.float64)
        bound = 4 * m * torch.finfo(torch.float64).eps * float(K.double().abs().max() * v.abs().max() * m)
        assert float((store @ v - K.double() @ v).abs().max()) <= bound
        assert (store @ v[:, 0]).shape == (n,)
        if n == m:
            assert torch.equal(store.diagonal(), K.diagonal())
        assert store.complete
        assert store.missing() == []
        store.verify()


def test_missing_tiles_are_named_and_zero_tiles_are_tiles(tmp_path):
    with KernelStore.create(tmp_path / "k", FACTS, 5, tile=2) as store:
        assert store.missing() == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
        assert not store.complete
        store.put(0, 0, torch.zeros(2, 2))
        assert store.missing()[0] == (0, 1)
        assert torch.equal(store.tile(0, 0), torch.zeros(2, 2))
        for read in (lambda: store.tile(2, 1), lambda: store.rows(0, 3), lambda: store @ torch.ones(5), store.diagonal):
            with pytest.raises(InputError, match=r"without tile \(") as error:
                read()
            assert "store.missing()" in error.value.hint


@pytest.mark.parametrize("place", ["row", "column", "entry"])
def test_a_tile_with_nan_names_its_examples_and_is_not_stored(tmp_path, place):
    with KernelStore.create(tmp_path / "k", FACTS, 6, 7, tile=3) as store:
        block = torch.zeros(3, 3)
        block[{"row": (1,), "column": (slice(None), 2), "entry": (1, 2)}[place]] = torch.nan
        named = {"row": "in rows 4 of", "column": "in columns 5 of", "entry": "in rows 4 of"}[place]
        with pytest.raises(NumericalError, match=named):
            store.put(1, 1, block)
        with pytest.raises(NumericalError):
            store.put(1, 1, block.nan_to_num(posinf=1) + torch.inf)
        assert (1, 1) in store.missing()


def test_a_diagonal_tile_keeps_its_upper_triangle(tmp_path):
    with KernelStore.create(tmp_path / "k", FACTS, 2, dtype=torch.float64) as store:
        with pytest.raises(NumericalError, match="asymmetry 1"):
            store.put(0, 0, torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64))
        store.put(0, 0, torch.tensor([[1.0, 2.0], [2 + 1e-9, 4.0]], dtype=torch.float64))
        assert store.tile(0, 0).tolist() == [[1.0, 2.0], [2.0, 4.0]]


def test_asymmetry_anywhere_in_a_diagonal_tile_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("kernelmem.kernels.store.tiles.BLOCK", 2)
    with KernelStore.create(tmp_path / "k", FACTS, 5) as store:
        for i, j in permutations(range(5), 2):
            tile = torch.ones(5, 5)
            tile[i, j] = 2
            with pytest.raises(NumericalError, match="asymmetry 1"):
                store.put(0, 0, tile)
        store.put(0, 0, torch.ones(5, 5))


def test_read_only_and_reversed_arrays_are_tiles(tmp_path):
    array = np.array([[1.0, 2.0], [3.0, 1.0]])
    with KernelStore.create(tmp_path / "k", FACTS, 2, 2, dtype=torch.float64) as store:
        store.put(0, 0, array[::-1])
        assert np.array_equal(store.tile(0, 0), array[::-1])
    symmetric = np.eye(2)
    symmetric.flags.writeable = False
    with KernelStore.create(tmp_path / "l", FACTS, 2, dtype=torch.float64) as store:
        store.put(0, 0, symmetric)


def test_a_tile_is_written_once(tmp_path):
    with KernelStore.create(tmp_path / "k", FACTS, 2) as store:
        store.put(0, 0, np.eye(2, dtype=np.float32))
        store.put(0, 0, torch.eye(2))
        with pytest.raises(InputError, match="stored with other values"):
            store.put(0, 0, 2 * torch.eye(2))


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.put(0, 0, torch.eye(2, dtype=torch.float64)),
        lambda store: store.put(0, 0, torch.eye(3)),
        lambda store: store.put(1, 0, torch.eye(2)),
        lambda store: store.put(0, 9, torch.eye(2)),
        lambda store: store.rows(2, 2),
        lambda store: store.rows(0, 5),
        lambda store: store.entries([4]),
        lambda store: store @ torch.ones(3),
        lambda store: store @ torch.full((4,), torch.nan),
    ],
)
def test_other_arguments_are_refused(tmp_path, call):
    with KernelStore.create(tmp_path / "k", FACTS, 4, tile=2) as store, pytest.raises(InputError):
        call(store)


def test_a_closed_store_and_one_opened_for_reading_are_refused(tmp_path):
    store = stored(tmp_path / "k", kernel(3, 3, torch.float32, symmetric=True), symmetric=True)
    with pytest.raises(InputError, match="opened for reading"):
        store.put(0, 0, torch.eye(2))
    store.close()
    with pytest.raises(InputError, match="is closed"):
        store.rows(0, 1)
    assert "closed" in repr(store)
    assert [p.name for p in tmp_path.iterdir()] == ["k"]  # neither log nor lock


def test_an_array_of_a_large_store_is_refused(tmp_path):
    with (
        KernelStore.create(tmp_path / "k", FACTS, 10**6) as store,
        pytest.raises(InputError, match=r"3725\.3 GiB") as error,
    ):
        np.asarray(store)
    assert "blocks" in error.value.hint


def test_eigenvalues_through_products(tmp_path):
    from scipy.sparse.linalg import eigsh

    factor = kernel(12, 12, torch.float64, symmetric=False)
    K = factor @ factor.T
    K = (K + K.T) / 2
    with stored(tmp_path / "k", K, tile=5, symmetric=True) as store:
        largest = eigsh(store.as_scipy(), k=2, return_eigenvectors=False, v0=np.ones(12))
    assert largest == pytest.approx(torch.linalg.eigvalsh(K)[-2:].numpy(), rel=1e-12)


@examples(0.2)
@given(
    data=st.data(), n=st.integers(1, 9), tile=st.integers(1, 5), dtype=st.sampled_from([torch.float32, torch.float64])
)
def test_a_subset_is_the_kernel_of_its_rows(folder, data, n, tile, dtype):
    rows = data.draw(st.permutations(range(n)).map(lambda order: order[: data.draw(st.integers(1, n))]))
    K = kernel(n, n, dtype, symmetric=True)
    path = folder / f"subset{next(NUMBERS)}"
    with (
        stored(folder / f"all{next(NUMBERS)}", K, tile=tile, symmetric=True) as store,
        store.subset(rows, path) as part,
    ):
        assert torch.equal(part.rows(0, len(rows)), K[rows][:, rows])
        assert part.complete
        assert part.layout.tile == tile
        assert part.facts["of"] == store.facts


def test_a_subset_of_other_stores_or_rows_is_refused(tmp_path):
    K = kernel(3, 3, torch.float64, symmetric=True)
    with stored(tmp_path / "a", K) as store, pytest.raises(InputError, match="not symmetric"):
        store.subset([0], tmp_path / "b")
    with stored(tmp_path / "c", K, symmetric=True) as store:
        for rows in ([0, 0], [3], []):
            with pytest.raises(InputError):
                store.subset(rows, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_subset_that_fails_leaves_nothing(tmp_path, monkeypatch):
    K = kernel(6, 6, torch.float64, symmetric=True)
    with KernelStore.create(tmp_path / "all", FACTS, 6, tile=2, dtype=torch.float64) as store:
        for i, j in store.missing()[:-2]:  # without (1, 2) and (2, 2)
            store.put(i, j, K[2 * i : 2 * i + 2, 2 * j : 2 * j + 2])
        with pytest.raises(InputError, match=r"without tile \(1, 2\)"):
            store.subset([0, 1, 2, 5], tmp_path / "part")
        with store.subset([0, 3], tmp_path / "first") as part:
            assert torch.equal(part.rows(0, 2), K[[0, 3]][:, [0, 3]])
        with monkeypatch.context() as patch:
            patch.setattr(KernelStore, "put", interrupt)
            with pytest.raises(KeyboardInterrupt):
                store.subset([0, 3], tmp_path / "part")
        content = (tmp_path / "first").read_bytes()
        with pytest.raises(InputError, match="which exists"):
            store.subset([0, 3], tmp_path / "first")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "first"]
    assert (tmp_path / "first").read_bytes() == content


def interrupt(*_):
    raise KeyboardInterrupt
