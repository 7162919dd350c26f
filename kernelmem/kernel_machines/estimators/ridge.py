"""Kernel ridge regression and classification as scikit-learn estimators."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets

from kernelmem.core.batches import Batch
from kernelmem.core.checks import ArrayLike, as_number, check_choice, check_instance
from kernelmem.core.errors import InputError
from kernelmem.kernel_machines.estimators.base import (
    Kernel,
    KernelEstimator,
    Prior,
    check_sample_weight,
    checked_solution,
    distinct_classes,
    has_positive_weight,
    prior_outputs,
)
from kernelmem.kernel_machines.model_selection.gcv import choose_weighted_ridge
from kernelmem.kernel_machines.solvers.diagnosis import inspect_kernel
from kernelmem.kernel_machines.solvers.linear_system import as_system
from kernelmem.kernel_machines.solvers.solution import Solution
from kernelmem.kernel_machines.solvers.solve import Solver, solve

SOLVER_PARAMETERS = ("jitter", "tolerance", "max_iter", "rank", "seed")


class _KernelRidge(KernelEstimator):
    """Kernel ridge regression f(x) = f_0(x) + k(x, X) a with (K + ridge I) a = y − f_0(X).

    Here f_0 is the prior function, K the kernel (n, n) of the training rows X, y the targets (n, C) and a the dual
    coefficients (n, C).
    """

    def __init__(
        self,
        kernel: Kernel = "rbf",
        *,
        ridge: float | str = 1e-3,
        gamma: float | str | None = None,
        degree: float = 3,
        coef0: float = 1,
        kernel_params: Mapping[str, object] | None = None,
        prior: Prior | None = None,
        solver: Solver = "auto",
        solver_params: Mapping[str, Any] | None = None,
    ) -> None:
        self.kernel = kernel
        self.ridge = ridge
        self.gamma = gamma
        self.degree = degree
        self.coef0 = coef0
        self.kernel_params = kernel_params
        self.prior = prior
        self.solver: Solver = solver
        self.solver_params = solver_params

    def _fit_targets(self, X: np.ndarray, targets: np.ndarray, sample_weight: ArrayLike | None) -> None:
        """Choose the ridge, solve for the dual coefficients (n, C), and store both as attributes.

        X are the n training rows and ``targets`` is (n, C).
        """
        weights = None if sample_weight is None else check_sample_weight(sample_weight, X)
        solver_params = {} if self.solver_params is None else self.solver_params
        check_instance(solver_params, "solver_params", Mapping, hint="pass a dict of the parameters of solve")
        for name in solver_params:
            check_choice(name, "name in solver_params", SOLVER_PARAMETERS)
        self._resolve_gamma(X)
        change_from_prior = targets - prior_outputs(self.prior, self.kernel, X, targets.shape[1])
        K = self._gram(X)
        self.ridge_ = self._select_ridge(K, change_from_prior, weights)
        solution = solve(K, change_from_prior, self.ridge_, solver=self.solver, sample_weight=weights, **solver_params)  # type: ignore[arg-type]
        self.solution_: Solution = checked_solution(solution)
        self.dual_coef_ = self.solution_.coefficients.numpy()
        self._store_rows(X)

    def _select_ridge(self, K: np.ndarray, targets: np.ndarray, weights: np.ndarray | None) -> float:
        """Return the ridge, chosen by leave-one-out or generalized cross-validation unless it is given as a number.

        K is the kernel (n, n), ``targets`` is (n, C) and ``weights`` are the sample weights (n,) or None. A kernel with NaN
        or asymmetry gives 0, because the later solve reports the fault.
        """
        if not isinstance(self.ridge, str):
            return as_number(self.ridge, "ridge")
        if self.ridge not in ("loo", "gcv"):
            raise InputError(f"ridge={self.ridge!r}", expected='a number >= 0, "loo" or "gcv"', hint='pass ridge="loo"')
        system = as_system(K)
        if inspect_kernel(system) is not None:  # solve() reports the fault, as for a given ridge
            return 0.0
        sample_weights = torch.ones(system.n, dtype=torch.float64) if weights is None else torch.from_numpy(weights)
        self.ridge_choice_ = choose_weighted_ridge(system, torch.from_numpy(targets), sample_weights, self.ridge)  # type: ignore[arg-type]
        return self.ridge_choice_.ridge

    def _compute_outputs(self, X: Batch) -> np.ndarray:
        """Return the outputs f(x) of the m rows X, (m, C), including those of the prior function."""
        rows, K = self._test_gram(X)
        return K @ self.dual_coef_ + prior_outputs(self.prior, self.kernel, rows, self.dual_coef_.shape[1])


class KernelMachineRegressor(MultiOutputMixin, RegressorMixin, _KernelRidge):
    """Kernel ridge regression f(x) = f_0(x) + k(x, X) a with (K + ridge I) a = y - f_0(X); no intercept.

    Args:
        kernel: a scikit-learn pairwise name; "precomputed" (X is then the kernel: (n, n) in ``fit``, (m, n) in
            ``predict``; a memory-mapped array is streamed, not copied); a callable kernel(X, Y) -> (n, m), such as
            ``TangentKernel(model)``; the result of ``km.path_kernel`` for N rows, or an array (N, N), memory-mapped or
            not: X are then its row numbers (clones copy an array; to share a large one, pass ``StoredKernel(array)``).
        ridge: a number >= 0, in units of the kernel (K + ridge I, not n ridge); "loo" or "gcv" choose it in closed form
            among 53 values by one eigendecomposition. For an accepted kernel with negative eigenvalues (integer entries;
            positive on zero-sum vectors) only ridges above twice the magnitude of the most negative one are compared.
        gamma, degree, coef0, kernel_params: of the named kernel, as in ``sklearn.kernel_ridge.KernelRidge``; gamma may
            also be "scale" (1 / (d var X)). ``kernel_params`` are keywords of a callable.
        prior: f_0, a callable on X or a torch module; the estimator learns the change from it.
        solver, solver_params: see :func:`kernelmem.kernel_machines.solve`.

    Attributes:
        dual_coef_: (n, C) a.
        ridge_: the ridge used.
        ridge_choice_: the ridges compared, if it was chosen.
        solution_: code, residual and condition of the solve.
        X_fit_: the training rows.

    Raises:
        InputError: a parameter is outside the values above.
        NumericalError: a kernel that is asymmetric, indefinite beyond rounding, or holds NaN; no convergence.

    Warns:
        LinAlgWarning: K + ridge I is singular up to rounding: code ``singular``, the least-norm fit.

    Cost: one Cholesky factorization, n³/3 multiply-adds; see ``solve``.

    >>> x = np.linspace(0, 3, 20)[:, None]
    >>> model = KernelMachineRegressor(kernel="rbf", ridge="loo").fit(x, np.sin(x[:, 0]))
    >>> bool(abs(model.predict([[1.5]])[0] - np.sin(1.5)) < 1e-3), model.solution_.code.value
    (True, 'solved')
    """

    def fit(self, X: Batch, y: ArrayLike, sample_weight: ArrayLike | None = None) -> "KernelMachineRegressor":
        """Fit the targets y, (n,) or (n, C), of the n rows X, and return the estimator.

        A sample weight of 2 has the same effect as repeating a row.
        """
        rows, targets = self._validate_targets(X, y)
        self._has_1d_targets = targets.ndim == 1
        self._fit_targets(rows, targets.astype(np.float64).reshape(len(targets), -1), sample_weight)
        return self

    def predict(self, X: Batch) -> np.ndarray:
        """Return the predictions of the m rows X: (m,) if the targets were one-dimensional, otherwise (m, C)."""
        outputs = self._compute_outputs(X)
        return outputs[:, 0] if self._has_1d_targets else outputs


class KernelMachineClassifier(ClassifierMixin, _KernelRidge):
    """Kernel ridge regression on labels: fits one-hot rows minus 1/C and predicts the label of the largest output.

    Parameters, attributes, errors and cost are those of :class:`KernelMachineRegressor`; ``prior`` gives (n, C) outputs
    (logits), C the number of classes; ``classes_`` are the labels in order.

    >>> x = np.array([[0.0], [0.2], [1.0], [1.2]])
    >>> KernelMachineClassifier().fit(x, ["a", "a", "b", "b"]).predict([[0.1], [1.1]]).tolist()
    ['a', 'b']
    """

    def fit(self, X: Batch, y: ArrayLike, sample_weight: ArrayLike | None = None) -> "KernelMachineClassifier":
        """Fit the labels y, (n,), of the n rows X, and return the estimator.

        A sample weight of 2 has the same effect as repeating a row.
        """
        rows, labels = self._validate_targets(X, y, multi_output=False)
        check_classification_targets(labels)
        has_weight = has_positive_weight(sample_weight, rows)
        self.classes_ = distinct_classes(labels[has_weight])  # rows of weight 0 do not count, nor do their classes
        n_classes = len(self.classes_)
        targets = np.zeros((len(labels), n_classes))
        targets[has_weight] = np.eye(n_classes)[np.searchsorted(self.classes_, labels[has_weight])] - 1 / n_classes
        self._fit_targets(rows, targets, sample_weight)
        return self

    def decision_function(self, X: Batch) -> np.ndarray:
        """Return the outputs of the m rows X for the C classes, (m, C).

        For two classes the result is their difference, (m,), as in scikit-learn.
        """
        outputs = self._compute_outputs(X)
        return outputs[:, 1] - outputs[:, 0] if outputs.shape[1] == 2 else outputs

    def predict(self, X: Batch) -> np.ndarray:
        """Return for each of the m rows X the label with the largest output, (m,)."""
        outputs = self._compute_outputs(X)
        return self.classes_[outputs.argmax(1)]
