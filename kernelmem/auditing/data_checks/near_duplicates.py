"""Groups of near-duplicate rows, by the cosine of their tangents."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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
    kernel: Tensor,  # (N, N), training rows first
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

    Cost: O(N²).
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    N = len(kernel)
    norm = kernel.diagonal().clamp_min(0).sqrt()
    scale = torch.where(norm > 0, norm, 1.0)
    cosines = kernel / scale / scale[:, None]
    cosines.fill_diagonal_(-torch.inf)
    chosen = cosine
    if chosen is None:
        neighbor = min(NEIGHBOR, N - 1)
        distances = 1 - cosines.topk(neighbor, dim=1).values[:, -1]
        chosen = max(SMALLEST_COSINE, 1 - SHARE_OF_SCALE * float(distances.median()))
    directed = (norm > 0) & (norm[:, None] > 0)  # a row whose tangent is zero has no direction
    while True:
        chosen = min(chosen, EQUAL)
        near = ((cosines >= chosen) & directed).cpu().numpy()
        _, component = connected_components(coo_array(near), directed=False)
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
        has_partner=np.stack([near[:, :n_train].any(1), near[:, n_train:].any(1)], 1),
    )
