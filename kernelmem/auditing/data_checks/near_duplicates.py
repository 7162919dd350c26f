"""Groups of near-duplicate rows, by the cosine of their tangents."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelmem.auditing.data_checks.row_kernel import AuditKernel, kernel_blocks

NEIGHBOR = 10  # distance to this neighbor is the scale of ordinary distances
SHARE_OF_SCALE = 0.15  # near-duplicates are this much closer, in squared distance
SMALLEST_COSINE = 0.95  # units of a ReLU network that switch between near-copies lower it
EQUAL = 1 - 1e-9  # equal rows have a cosine of 1 up to rounding
FEW, LARGEST_GROUP = 20, 0.02  # rows, and share of the rows, of the largest group with a chosen threshold


@dataclass(frozen=True)
class NearDuplicates:
    """Groups of rows that are connected by near-duplicates.

    Attributes:
        cosine: threshold of the cosine.
        group: (N,) group number of each row, 0, 1, ... in the order of the first row.
        representative: (G,) one row of each group, drawn at random.
        has_partner: (N, 2) whether a row has a near-duplicate among the other training rows, and among the other test rows.
    """

    cosine: float
    group: np.ndarray
    representative: Tensor
    has_partner: np.ndarray


def find_near_duplicates(
    kernel: AuditKernel,  # (N, N), training rows first
    n_train: int,
    *,
    cosine: float | None = None,
    seed: int = 0,
) -> NearDuplicates:
    """Group the rows whose tangents are almost parallel.

    Rows i and j are near-duplicates if K_ij / √(K_ii K_jj) ≥ c. Groups are the connected components. The representative of
    a group is drawn at random from all its rows, whether training or test rows: if training and test rows are
    exchangeable, so are the representatives.

    Args:
        kernel: (N, N) kernel of training and test rows.
        n_train: number of training rows, which come first.
        cosine: threshold c; None: max(.95, 1 − .15 s), where s is the median over rows of 1 − cosine to the 10th nearest
            row, raised until no group has more than 20 rows and 2 % of the rows, so that ordinary neighbors in dense data
            are not called duplicates.
        seed: seed of the representatives.

    Cost: O(N²) for each threshold that is tried; a file is read a few times.
    """
    N, norm = kernel.shape[0], kernel.diagonal().clamp_min(0).sqrt()
    chosen = cosine
    if chosen is None:
        neighbor = min(NEIGHBOR, N - 1)
        distances = [1 - block.topk(neighbor, dim=1).values[:, -1] for _, block in cosine_blocks(kernel)]
        chosen = max(SMALLEST_COSINE, 1 - SHARE_OF_SCALE * float(torch.cat(distances).median()))
    while True:
        chosen = min(chosen, EQUAL)
        component, has_partner = _components(kernel, norm > 0, n_train, chosen)
        if cosine is not None or chosen == EQUAL or np.bincount(component).max() <= max(FEW, LARGEST_GROUP * N):
            break
        chosen = 1 - (1 - chosen) / 4  # a chain of neighbors is not a group of duplicates
    first = np.full(component.max() + 1, N)
    np.minimum.at(first, component, np.arange(N))
    group = np.argsort(np.argsort(first))[component]
    order = np.random.default_rng(seed).permutation(N)
    _, position = np.unique(group[order], return_index=True)
    return NearDuplicates(
        cosine=chosen,
        group=group.astype(np.int64),
        representative=torch.from_numpy(np.sort(order[position])),
        has_partner=has_partner,
    )


def cosine_blocks(kernel: AuditKernel) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows, cosines) for all rows of a kernel (N, N) in order; −∞ for a row with itself."""
    norm = kernel.diagonal().clamp_min(0).sqrt()
    scale = torch.where(norm > 0, norm, 1.0)
    for rows, block in kernel_blocks(kernel):
        cosines = block / scale
        cosines /= scale[rows, None]
        cosines[:, rows].fill_diagonal_(-torch.inf)
        yield rows, cosines


def _components(kernel: AuditKernel, directed: Tensor, n_train: int, cosine: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the component (N,) of each row, connected by cosines from ``cosine`` on, and ``has_partner`` (N, 2).

    A row that is not ``directed`` (N,), because its tangent is zero, has no near-duplicates.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    N = len(directed)
    component, has_partner = np.arange(N), np.zeros((N, 2), bool)
    for rows, cosines in cosine_blocks(kernel):
        near = ((cosines >= cosine) & directed & directed[rows, None]).numpy()
        has_partner[rows] = np.stack([near[:, :n_train].any(1), near[:, n_train:].any(1)], 1)
        first, second = near.nonzero()
        edges = component[first + rows.start], component[second]
        _, merged = connected_components(coo_array((np.ones(len(first), bool), edges), (N, N)), directed=False)
        component = merged[component]
    return component, has_partner
