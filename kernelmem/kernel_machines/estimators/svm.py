"""The support vector machine of a kernel: scikit-learn's SVC behind the same kernels and the same diagnosis."""

import warnings
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import SVC
from sklearn.utils.multiclass import check_classification_targets

from kernelmem.kernel_machines.estimators.base import KernelEstimator, classes_of, positive_weight, weights_of
from kernelmem.kernel_machines.solvers.diagnosis import require_kernel

__all__ = ["KernelMachineSVC"]

TOLERANCES = (1e-8, 1e-6, 1e-4)
ITERATIONS = 100_000  # and 100 a row: what a tolerance may take before the next one is tried


class KernelMachineSVC(ClassifierMixin, KernelEstimator):
    """Support vector classification: scikit-learn's SVC on the kernel matrix, which is checked first.

    min ½|f|² + C Σ_i max(0, 1 - y_i (f(x_i) + b)), one against one for several classes. A kernel that is positive only
    on zero-sum vectors is as good as a positive one here, since the dual variables sum to zero.

    Parameters
    ----------
        kernel, gamma, degree, coef0, kernel_params: as in ``KernelMachineRegressor``.
        C, class_weight, tol, max_iter, decision_function_shape, break_ties: as in ``sklearn.svm.SVC``. tol=None: the
            first of 1e-8, 1e-6, 1e-4 that is reached, else 1e-3, which is scikit-learn's: at 1e-8 a doubled weight and a
            row given twice agree to seven digits, but on kernels of low rank the iterations may never get there.

    Attributes
    ----------
        classes_, support_, n_support_, dual_coef_, intercept_: of the machine ``svc_``. tol_: the tolerance
            that was reached. X_fit_: the training rows.

    Raises
    ------
        NumericalError: a kernel that is asymmetric, indefinite on zero-sum vectors beyond rounding, or holds NaN.

    Cost: the n x n kernel, one Cholesky factorization of it, and SVC's own between n² and n³.

    Source: Cortes and Vapnik 1995; conditionally positive kernels: Schölkopf 2000.

    >>> x = np.array([[0.0], [0.2], [1.0], [1.2]])
    >>> KernelMachineSVC().fit(x, [0, 0, 1, 1]).predict([[0.1], [1.1]]).tolist()
    [0, 1]
    """

    def __init__(
        self,
        kernel: Any = "rbf",
        *,
        C: float = 1.0,
        gamma: Any = "scale",
        degree: float = 3,
        coef0: float = 0.0,
        kernel_params: dict[str, Any] | None = None,
        class_weight: Any = None,
        tol: float | None = None,
        max_iter: int = -1,
        decision_function_shape: str = "ovr",
        break_ties: bool = False,
    ) -> None:
        self.kernel = kernel
        self.C = C
        self.gamma = gamma
        self.degree = degree
        self.coef0 = coef0
        self.kernel_params = kernel_params
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter
        self.decision_function_shape = decision_function_shape
        self.break_ties = break_ties

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "KernelMachineSVC":
        """Fit to labels y, (n,); weights multiply C row by row."""
        X, y = self._read(X, y, reset=True, multi_output=False)
        used = positive_weight(sample_weight, X).nonzero()[0]
        weights = None if sample_weight is None else weights_of(sample_weight, X)[used]
        check_classification_targets(y)
        classes_of(y[used])
        self._resolve_gamma(X[used], weights)
        K = self._gram(X)
        require_kernel(K)
        # Rows of weight 0 are taken out here: libsvm drops them, and then numbers its support vectors by the rest.
        whole = len(used) == X.shape[0]
        K = np.asarray(K if whole else np.asarray(K)[np.ix_(used, used)], dtype=np.float64)
        self.svc_ = machine = self._solve(K, y[used], weights)
        self.tol_ = machine.tol
        self._used = used
        self.classes_, self.support_ = machine.classes_, used[machine.support_]
        self.n_support_, self.dual_coef_, self.intercept_ = machine.n_support_, machine.dual_coef_, machine.intercept_
        self.n_iter_ = machine.n_iter_
        self._keep(X)
        return self

    def _solve(self, K: np.ndarray, y: np.ndarray, weights: np.ndarray | None) -> SVC:
        machine = SVC(
            kernel="precomputed",
            C=self.C,
            class_weight=self.class_weight,
            max_iter=self.max_iter,
            decision_function_shape=self.decision_function_shape,
            break_ties=self.break_ties,
        )
        if self.tol is not None:
            return machine.set_params(tol=self.tol).fit(K, y, weights)
        if self.max_iter == -1:
            for tol in TOLERANCES:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    machine.set_params(tol=tol, max_iter=ITERATIONS + 100 * len(K)).fit(K, y, weights)
                if machine.fit_status_ == 0:
                    return machine
        return machine.set_params(tol=1e-3, max_iter=self.max_iter).fit(K, y, weights)

    def decision_function(self, X: Any) -> np.ndarray:
        """Signed distances in units of the margin, (m,) for two classes, otherwise (m, C) or one for each pair."""
        K = self._test_gram(X)[1]
        return self.svc_.decision_function(K[:, self._used])

    def predict(self, X: Any) -> np.ndarray:
        """Labels, (m,)."""
        K = self._test_gram(X)[1]
        return self.svc_.predict(K[:, self._used])
