"""Gaussian process regression with a fixed kernel: posterior mean, posterior variance, log evidence."""

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from sklearn.base import MultiOutputMixin, RegressorMixin
from torch import Tensor

from kernelmem.core.batches import Batch
from kernelmem.core.checks import ArrayLike, as_count, as_number, as_seed
from kernelmem.core.errors import InputError, NumericalError
from kernelmem.kernel_machines.estimators.base import (
    Kernel,
    KernelEstimator,
    Prior,
    checked_solution,
    kernel_diagonal,
    prior_outputs,
)
from kernelmem.kernel_machines.estimators.precomputed_kernel import as_array
from kernelmem.kernel_machines.solvers.diagnosis import condition_limit, inspect_and_copy
from kernelmem.kernel_machines.solvers.factorization import EPS
from kernelmem.kernel_machines.solvers.linear_system import as_system
from kernelmem.kernel_machines.solvers.solution import Code, Solution
from kernelmem.kernel_machines.solvers.solve import above_rounding, solve, try_cholesky


class KernelMachineGP(MultiOutputMixin, RegressorMixin, KernelEstimator):
    """Gaussian process regression with a fixed kernel: y = f(x) + noise, f ~ GP(f_0, K), noise variance ridge.

    With A = K + ridge I::

        mean     f_0(x) + k(x, X) A⁻¹ (y - f_0(X))
        variance k(x, x) - k(x, X) A⁻¹ k(X, x)                       of f, without the noise
        evidence -½ rᵀ A⁻¹ r - ½ log det A - n/2 log 2π, r = y - f_0(X), summed over outputs

    The mean is that of ``KernelMachineRegressor``. Outputs are independent and share the kernel, hence the variance.

    Args:
        kernel, gamma, degree, coef0, kernel_params, prior: as in ``KernelMachineRegressor``.
        ridge: the noise variance, a number >= 0, in units of the kernel; "evidence": the one of largest evidence.

    Attributes:
        ridge_: the noise variance that was used.
        log_evidence_: natural logarithm of the evidence.
        dual_coef_: (n, C).
        X_fit_: the training rows.
        solution_: code, residual and condition. If A is singular up to rounding (code ``singular``), mean, variance and
            evidence are restricted to the directions above rounding. A kernel that is positive only on zero-sum vectors
            (code ``conditionally_positive``) is not a covariance: the mean solves the system as given, the evidence is
            NaN, and a request for the variance raises an error.

    Raises:
        NumericalError: a kernel that is asymmetric, indefinite on zero-sum vectors beyond rounding, or holds NaN.

    Cost: one Cholesky factorization; a variance n² per row; one n x n matrix is stored.

    Source: Rasmussen and Williams 2006, algorithm 2.1.

    >>> x = np.linspace(0, 3, 20)[:, None]
    >>> process = KernelMachineGP(gamma=1.0, ridge=1e-4).fit(x, np.sin(x[:, 0]))
    >>> mean, std = process.predict([[1.5], [30.0]], return_std=True)
    >>> bool(std[0] < 0.01), round(float(std[1]), 6), bool(abs(mean[1]) < 1e-6)
    (True, 1.0, True)
    """

    def __init__(
        self,
        kernel: Kernel = "rbf",
        *,
        ridge: float | Literal["evidence"] = 1e-3,
        gamma: float | str | None = None,
        degree: float = 3,
        coef0: float = 1,
        kernel_params: Mapping[str, object] | None = None,
        prior: Prior | None = None,
    ) -> None:
        self.kernel = kernel
        self.ridge = ridge
        self.gamma = gamma
        self.degree = degree
        self.coef0 = coef0
        self.kernel_params = kernel_params
        self.prior = prior

    def fit(self, X: Batch, y: ArrayLike) -> "KernelMachineGP":
        """Fit the posterior to the targets y, (n,) or (n, C), of the n rows X, and return the estimator."""
        rows, targets = self._validate_targets(X, y)
        self._has_1d_targets = targets.ndim == 1
        targets = targets.astype(np.float64).reshape(len(targets), -1)
        self._resolve_gamma(rows)
        change_from_prior = torch.from_numpy(targets - prior_outputs(self.prior, self.kernel, rows, targets.shape[1]))
        ridge = self.ridge if self.ridge == "evidence" else as_number(self.ridge, "ridge")
        K = self._gram(rows)
        self.ridge_ = _ridge_of_largest_evidence(K, change_from_prior) if isinstance(ridge, str) else ridge
        self._factor, self.solution_ = _factorize_and_solve(K, change_from_prior, self.ridge_)
        self.dual_coef_ = self.solution_.coefficients.numpy()
        self.log_evidence_ = float("nan")
        if self._factor is not None:
            rank, logdet = self._factor.rank_and_logdet()
            quadratic_form = float((change_from_prior * self.solution_.coefficients).sum())
            self.log_evidence_ = -0.5 * (
                quadratic_form + change_from_prior.shape[1] * (logdet + rank * math.log(2 * math.pi))
            )
        self._store_rows(rows)
        return self

    def predict(
        self,
        X: Batch,
        return_std: bool = False,
        return_cov: bool = False,
        K_test_diag: ArrayLike | None = None,
        K_test_test: ArrayLike | None = None,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Return the posterior mean, (m,) or (m, C) as y was; with ``return_std`` also the standard deviation of f, (m,).

        ``return_cov`` returns the covariance (m, m) instead. With a precomputed kernel X is (m, n), and the kernel of the
        test rows with themselves is needed: its diagonal ``K_test_diag`` (m,) for the standard deviation, all of it,
        ``K_test_test`` (m, m), for the covariance.

        Raises:
            InputError: both the standard deviation and the covariance are requested, or the kernel of the test rows is missing.
        """
        if return_std and return_cov:
            raise InputError(
                "return_std=True and return_cov=True",
                expected="at most one of them",
                hint="compute the standard deviation from the covariance",
            )
        rows, K = self._test_gram(X)
        mean = K @ self.dual_coef_ + prior_outputs(self.prior, self.kernel, rows, self.dual_coef_.shape[1])
        mean = mean[:, 0] if self._has_1d_targets else mean
        if not (return_std or return_cov):
            return mean
        if self._factor is None:
            raise NumericalError(
                f"kernel that is positive only on zero-sum vectors ({self.solution_.detail})",
                expected="a positive semidefinite kernel for a variance",
                hint="add a constant to the kernel, on test rows too; without it only the mean is defined",
            )
        prior_covariance = self._prior_covariance(rows, K_test_test if return_cov else K_test_diag, full=return_cov)
        whitened = self._factor.whiten(torch.from_numpy(K)).numpy()  # (r, m)
        if return_cov:
            return mean, prior_covariance - whitened.T @ whitened
        return mean, np.sqrt(np.maximum(prior_covariance - np.square(whitened).sum(0), 0.0))

    def sample_y(
        self, X: Batch, n_samples: int = 1, random_state: int = 0, K_test_test: ArrayLike | None = None
    ) -> np.ndarray:
        """Draw functions from the posterior at the m rows X: (m, n_samples), or (m, C, n_samples) as y was.

        Samples are mean + V √Λ z with the eigenvalues Λ of the posterior covariance and z ~ N(0, I); the noise is not added.
        With a precomputed kernel ``K_test_test`` is needed as in :meth:`predict`.

        Raises:
            InputError: ``n_samples`` below 1, or a missing kernel of the test rows.
        """
        n_samples, seed = as_count(n_samples, "n_samples"), as_seed(random_state, "random_state")
        mean, covariance = self.predict(X, return_cov=True, K_test_test=K_test_test)
        values, V = np.linalg.eigh((covariance + covariance.T) / 2)
        root = V * np.sqrt(np.maximum(values, 0.0))  # negative ones are rounding
        columns = mean.reshape(len(mean), -1)
        noise = np.random.default_rng(seed).standard_normal((len(root), columns.shape[1] * n_samples))
        samples = columns[:, :, None] + (root @ noise).reshape(len(root), columns.shape[1], n_samples)
        return samples[:, 0] if self._has_1d_targets else samples

    def _prior_covariance(self, X: np.ndarray, test_kernel: ArrayLike | None, *, full: bool) -> np.ndarray:
        """Return the prior covariance of the m test rows X, (m, m) if ``full``, otherwise its diagonal (m,).

        ``test_kernel`` holds these values if the user gave them; it is required with ``kernel="precomputed"``.

        Raises:
            InputError: ``test_kernel`` is missing or has a wrong shape.
        """
        shape = (X.shape[0], X.shape[0]) if full else (X.shape[0],)
        name = "K_test_test" if full else "K_test_diag"
        if test_kernel is None and isinstance(self.kernel, str) and self.kernel == "precomputed":
            raise InputError(
                f"{name}=None with kernel='precomputed'",
                expected=f"the kernel of the test rows with themselves, {shape}",
                hint="pass predict(K_test, return_std=True, K_test_diag=diagonal)",
            )
        if test_kernel is None:
            return np.asarray(self._gram(X), dtype=np.float64) if full else kernel_diagonal(self._gram, X)
        covariance = np.asarray(as_array(test_kernel), dtype=np.float64)
        if covariance.shape != shape:
            raise InputError(
                f"{name} of shape {covariance.shape}", expected=f"{shape}", hint="compute it on the rows of X"
            )
        return covariance


class _InverseRoot:
    """A matrix W (r, n) with A⁻¹ = Wᵀ W, where A = K + ridge I is the covariance of the n training targets.

    W is the inverse of the Cholesky factor L of A. If A is singular up to rounding, W has r < n rows: the eigenvectors V
    (n, r) of eigenvalues above rounding, each divided by the square root of its eigenvalue.
    """

    def __init__(self, L: Tensor | None, values: Tensor | None, V: Tensor | None) -> None:
        self.L, self.values, self.V = L, values, V

    def whiten(self, rows: Tensor) -> Tensor:
        """Return W kᵀ for each of the m rows k of ``rows`` (m, n), as the columns of a matrix (r, m)."""
        if self.L is not None:
            return torch.linalg.solve_triangular(self.L, rows.T, upper=False)
        assert self.V is not None
        assert self.values is not None
        return (self.V.T @ rows.T) / self.values.sqrt()[:, None]

    def rank_and_logdet(self) -> tuple[int, float]:
        """Return the rank r of A and the logarithm of its determinant, restricted to the r eigenvalues above rounding."""
        if self.L is not None:
            return len(self.L), 2 * float(self.L.diagonal().log().sum())
        assert self.values is not None
        return len(self.values), float(self.values.log().sum())


def _ridge_of_largest_evidence(K: np.ndarray, targets: Tensor) -> float:
    """Return the noise variance λ that maximizes the evidence of the targets (n, C) under K + λ I.

    With K = V diag(μ) Vᵀ it is −½ Σ_i (|v_iᵀ r|² / (μ_i + λ) + C log(μ_i + λ)) up to a constant: one decomposition, then a
    search over log λ between n eps and 10 times the larger of |K| and the variance of the targets. A faulty kernel gives 0,
    because the later solve reports the fault.
    """
    from scipy.optimize import minimize_scalar

    system = as_system(K)
    fault, dense = inspect_and_copy(system)
    if fault is not None:
        return 0.0
    eigenvalues, V = torch.linalg.eigh(dense)
    mu = eigenvalues.clamp_min(0.0).numpy()
    power = (V.T @ targets).square().sum(1).numpy()
    C, variance = targets.shape[1], float(targets.square().mean())
    scale = max(float(mu.max()), variance)
    if scale == 0.0:
        return 0.0

    def negative_evidence(log_ridge: float) -> float:
        total = mu + math.exp(log_ridge)
        return float((power / total + C * np.log(total)).sum())

    grid = np.linspace(math.log(len(mu) * EPS * scale), math.log(10 * scale), 60)
    best = int(np.argmin([negative_evidence(point) for point in grid]))  # there may be several maxima
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    return math.exp(float(minimize_scalar(negative_evidence, bounds=bounds, method="bounded").x))  # pyright: ignore[reportAttributeAccessIssue]


def _factorize_and_solve(K: np.ndarray, targets: Tensor, ridge: float) -> tuple[_InverseRoot | None, Solution]:
    """Return W with A⁻¹ = Wᵀ W, for A = K + ridge I, and the solution a of A a = targets.

    K is the kernel (n, n) and ``targets`` is (n, C). W is None if the kernel is positive only on zero-sum vectors, so that A
    is not a covariance.
    """
    system = as_system(K)
    fault, K_dense = inspect_and_copy(system)
    if fault is None:
        factor, condition = try_cholesky(K_dense, targets, ridge)
        if factor is not None and condition <= condition_limit(system.n):
            a = factor.alpha()
            residual_norm, target_norm = float((system @ a + ridge * a - targets).norm()), float(targets.norm())
            return _InverseRoot(factor.L, None, None), Solution(
                a, Code.solved, residual_norm / target_norm if target_norm else residual_norm, condition
            )
    solution = checked_solution(solve(K, targets, ridge, solver="eigen"))
    if solution.code is Code.conditionally_positive:
        return None, solution
    K_dense = system.symmetric()  # the factorization has overwritten the first copy
    eigenvalues, V = torch.linalg.eigh(K_dense)
    nonzero = above_rounding(eigenvalues, ridge, system, float(K_dense.abs().max()))
    return _InverseRoot(None, eigenvalues[nonzero] + ridge, V[:, nonzero]), solution
