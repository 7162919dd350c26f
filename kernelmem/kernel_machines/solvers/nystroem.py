"""Nyström approximation of a kernel from landmark columns: choice of landmarks, preconditioner, solve over landmarks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.kernel_machines.solvers.linear_system import EPS, System

ROWS = 4096  # rows of the tall matrices processed at once


@dataclass(frozen=True, eq=False)
class Preconditioner:
    """The preconditioner P⁻¹: the inverse of U Λ Uᵀ + ridge I up to a factor, and the identity orthogonal to U."""

    U: Tensor  # (n, k), orthonormal columns
    values: Tensor  # (k,), diagonal of Λ, descending
    ridge: float

    def __call__(self, r: Tensor) -> Tensor:
        """Return the product of the preconditioner P⁻¹ and r (n, C), (n, C)."""
        if not len(self.values):
            return r.clone()
        scale = (self.values[-1] + self.ridge) / (self.values + self.ridge) - 1
        return r + self.U @ (scale[:, None] * (self.U.T @ r))


def leverage_scores(system: System, sqrt_weights: Tensor, ridge: float, pilot: Tensor) -> Tensor:
    r"""Approximate the ridge leverage scores l_i = [K (K + ridge I)⁻¹]_ii, (n,), from the columns of a sample S of the rows.

    ``pilot`` holds the row numbers of S. The kernel K is that of ``system``, with rows and columns multiplied by
    ``sqrt_weights``. If the diagonal is unknown or the factorization fails, all scores are 1.

    l_i ≈ (K_ii − k_iᵀ (K_SS + (|S|/n) ridge I)⁻¹ k_i) / ridge with k_i = K_Si, clipped to [0, 1]: the part of row i that
    the pilot does not explain, relative to the ridge. A poor pilot gives overestimates.

    Source: Alaoui and Mahoney 2015; Rudi, Calandriello, Carratino, Rosasco 2018.
    """
    diagonal = system.diagonal()
    if diagonal is None:
        return torch.ones(system.n, dtype=torch.float64, device=system.device)
    diagonal = diagonal * sqrt_weights.square()
    columns = system.columns(pilot) * sqrt_weights[:, None] * sqrt_weights[pilot]
    K_pilot = columns[pilot].clone()
    K_pilot = (K_pilot + K_pilot.T) / 2
    K_pilot.diagonal().add_(ridge * len(pilot) / system.n + len(pilot) * EPS * float(K_pilot.diagonal().max()))
    L, info = torch.linalg.cholesky_ex(K_pilot)
    if int(info):
        return torch.ones_like(diagonal)
    explained = torch.linalg.solve_triangular(L, columns.T, upper=False).square().sum(0)
    floor = ridge * 1e-3 if ridge > 0 else EPS * float(diagonal.max())
    return ((diagonal - explained).clamp_min(floor) / max(ridge, floor)).clamp_max(1.0) * (sqrt_weights > 0)


def draw_landmarks(system: System, sqrt_weights: Tensor, ridge: float, rank: int, *, seed: int) -> Tensor:
    """Draw at most ``rank`` different rows with positive weight as landmarks, and return their numbers, ascending.

    Half of them are drawn uniformly; the others are drawn in proportion to the leverage scores that these determine.
    """
    generator = torch.Generator().manual_seed(seed)
    candidate_rows = (sqrt_weights > 0).nonzero()[:, 0].cpu()
    rank = min(rank, len(candidate_rows))
    pilot = candidate_rows[torch.randperm(len(candidate_rows), generator=generator)[: max(1, rank // 2)]]
    if len(pilot) >= rank:
        return pilot[:rank].sort().values
    scores = leverage_scores(system, sqrt_weights, ridge, pilot).cpu()
    scores[pilot] = 0
    scores = torch.where(sqrt_weights.cpu() > 0, scores, torch.zeros_like(scores))
    n_more = min(rank - len(pilot), int((scores > 0).sum()))
    if not n_more:
        return pilot.sort().values
    return torch.cat([pilot, torch.multinomial(scores, n_more, generator=generator)]).sort().values


def build_preconditioner(system: System, sqrt_weights: Tensor, ridge: float, landmark_rows: Tensor) -> Preconditioner:
    """Build a preconditioner for S K S + ridge I with S = diag(sqrt_weights), from the k columns at ``landmark_rows``.

    It approximates the weighted kernel by K̂ = C (K_ll)⁻¹ Cᵀ, where C (n, k) holds the columns of the landmarks l, and K_ll
    (k, k) their kernel. If K_ll has no Cholesky factor, the preconditioner is the identity.

    Source: Frangella, Tropp, Udell 2023. Cost: n k² for k landmarks, and their columns.
    """
    columns = (
        system.columns(landmark_rows) * sqrt_weights[:, None] * sqrt_weights[landmark_rows.to(sqrt_weights.device)]
    )
    K_landmarks = (columns[landmark_rows] + columns[landmark_rows].T) / 2
    shift = len(landmark_rows) * EPS * max(float(K_landmarks.diagonal().max()), float(columns.abs().max()))
    shift = max(shift, system.eps * float(K_landmarks.norm()))  # rounding of the kernel's dtype, subtracted again below
    K_landmarks.diagonal().add_(shift)
    L, info = torch.linalg.cholesky_ex(K_landmarks)
    if int(info):
        empty = torch.empty(system.n, 0, dtype=torch.float64, device=columns.device)
        return Preconditioner(empty, empty[0], ridge)
    for block in columns.split(ROWS):  # in place: columns and Q are the large matrices
        block.copy_(torch.linalg.solve_triangular(L.mT, block, upper=True, left=False))  # now K̂ = columns columnsᵀ
    Q, R = torch.linalg.qr(columns)  # then the SVD of the small R: faster and smaller than an SVD of the tall matrix
    del columns
    left_vectors, singular_values, _ = torch.linalg.svd(R)
    for block in Q.split(ROWS):
        block.copy_(block @ left_vectors)
    values = (singular_values.square() - shift).clamp_min(0)
    return Preconditioner(Q, values, ridge)


def solve_over_landmarks(
    system: System, sqrt_weights: Tensor, targets: Tensor, ridge: float, landmark_rows: Tensor
) -> Tensor:
    """Solve weighted kernel ridge regression in the span of the kernel functions of the landmark rows l.

    The result holds the coefficients (n, C), which are zero for other rows. Below, S = diag(sqrt_weights), y are the targets
    (n, C) of all n rows, and β are the coefficients of the landmarks.

    β minimizes |S y − S K_nl β|² + ridge βᵀ K_ll β; with all rows as landmarks this is the full solution. It is computed
    as least squares of [S K_nl; √ridge Rᵀ] with K_ll = R Rᵀ, because the normal equations would square the condition.

    Source: Williams and Seeger 2001; Rudi, Carratino, Rosasco 2017.
    """
    columns = system.columns(landmark_rows)
    K_landmarks = (columns[landmark_rows] + columns[landmark_rows].T) / 2
    eigenvalues, V = torch.linalg.eigh(K_landmarks)
    nonzero = eigenvalues > len(landmark_rows) * system.eps * float(eigenvalues[-1])
    basis = V[:, nonzero] / eigenvalues[nonzero].sqrt()  # orthonormal functions: basisᵀ K_ll basis = I
    features = sqrt_weights[:, None] * (columns @ basis)
    k, C = features.shape[1], targets.shape[1]
    stacked = torch.cat([features, ridge**0.5 * torch.eye(k, dtype=features.dtype, device=features.device)])
    zeros = torch.zeros(k, C, dtype=features.dtype, device=features.device)
    stacked_targets = torch.cat([sqrt_weights[:, None] * targets, zeros])
    driver = "gelsd" if stacked.device.type == "cpu" else "gels"
    solution = torch.linalg.lstsq(stacked, stacked_targets, driver=driver).solution
    coefficients = torch.zeros_like(targets)
    coefficients[landmark_rows.to(targets.device)] = basis @ solution
    return coefficients
