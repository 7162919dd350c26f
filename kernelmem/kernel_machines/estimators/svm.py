"""Support vector classification: scikit-learn's SVC with the kernels and the diagnosis of this package."""

import warnings
from collections.abc import Mapping

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import SVC
from sklearn.utils.multiclass import check_classification_targets

from kernelmem.core.batches import Batch
from kernelmem.core.checks import ArrayLike, as_count, as_number
from kernelmem.kernel_machines.estimators.base import (
    Kernel,
    KernelEstimator,
    check_sample_weight,
    distinct_classes,
    has_positive_weight,
)
from kernelmem.kernel_machines.solvers.diagnosis import require_kernel
from kernelmem.kernels import KernelStore

TOLERANCES = (1e-8, 1e-6, 1e-4)  # tried in this order if tol=None
MIN_ITERATIONS = 100_000  # this plus 100 per row is the limit for one tolerance before the next is tried


class KernelMachineSVC(ClassifierMixin, KernelEstimator):
    """Support vector classification: scikit-learn's SVC on the kernel matrix, which is checked first.

    min ½|f|² + C Σ_i max(0, 1 − y_i (f(x_i) + b)), one against one for several classes. It suffices that the kernel is
    positive on zero-sum vectors, because the dual variables sum to zero.

    Args:
        kernel, gamma, degree, coef0, kernel_params: as in ``KernelMachineRegressor``.
        C, class_weight, tol, max_iter, decision_function_shape, break_ties: as in ``sklearn.svm.SVC``. tol=None: the
            first of 1e-8, 1e-6, 1e-4 that is reached, else 1e-3 (scikit-learn's default): at 1e-8 a doubled weight and a
            repeated row agree to seven digits, but kernels of low rank may never reach it.

    Attributes:
        classes_, support_, n_support_, dual_coef_, intercept_: of the fitted SVC, ``svc_``.
        tol_: the tolerance that was reached.
        X_fit_: the training rows.

    Raises:
        NumericalError: a kernel that is asymmetric, indefinite on zero-sum vectors beyond rounding, or holds NaN.

    Cost: the n x n kernel, one Cholesky factorization of it, and that of SVC, between n² and n³.

    Source: Cortes and Vapnik 1995; conditionally positive kernels: Schölkopf 2000.

    >>> x = np.array([[0.0], [0.2], [1.0], [1.2]])
    >>> KernelMachineSVC().fit(x, [0, 0, 1, 1]).predict([[0.1], [1.1]]).tolist()
    [0, 1]
    """

    def __init__(
        self,
        kernel: Kernel = "rbf",
        *,
        C: float = 1.0,
        gamma: float | str | None = "scale",
        degree: float = 3,
        coef0: float = 0.0,
        kernel_params: Mapping[str, object] | None = None,
        class_weight: Mapping[object, float] | str | None = None,
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

    def fit(self, X: Batch, y: ArrayLike, sample_weight: ArrayLike | None = None) -> "KernelMachineSVC":
        """Fit the labels y, (n,), of the n rows X, and return the estimator.

        A sample weight multiplies the parameter C of its row.
        """
        tol = None if self.tol is None else as_number(self.tol, "tol", exclusive=True)
        max_iter = as_count(self.max_iter, "max_iter", minimum=-1)
        X = np.asarray(X) if isinstance(X, KernelStore) else X  # libsvm needs it whole
        rows, labels = self._validate_targets(X, y, multi_output=False)
        used_rows = has_positive_weight(sample_weight, rows).nonzero()[0]
        weights = None if sample_weight is None else check_sample_weight(sample_weight, rows)[used_rows]
        check_classification_targets(labels)
        distinct_classes(labels[used_rows])
        self._resolve_gamma(rows[used_rows], weights)
        K = self._gram(rows)
        require_kernel(K)
        # Rows of weight 0 are removed here, because libsvm drops them and numbers its support vectors without them.
        uses_all_rows = len(used_rows) == rows.shape[0]
        K = np.asarray(K if uses_all_rows else np.asarray(K)[np.ix_(used_rows, used_rows)], dtype=np.float64)
        self.svc_ = svc = self._fit_svc(K, labels[used_rows], weights, tol, max_iter)
        self.tol_ = svc.tol
        self._used_rows = used_rows
        self.classes_, self.support_ = svc.classes_, used_rows[svc.support_]
        self.n_support_, self.dual_coef_, self.intercept_ = svc.n_support_, svc.dual_coef_, svc.intercept_
        self.n_iter_ = svc.n_iter_
        self._store_rows(rows)
        return self

    def _fit_svc(
        self, K: np.ndarray, y: np.ndarray, weights: np.ndarray | None, tol: float | None, max_iter: int
    ) -> SVC:
        """Fit scikit-learn's SVC to the kernel matrix K (n, n) and the labels y (n,), and return it.

        If ``tol`` is None, it is the smallest of a few tolerances at which the optimizer converges. ``weights`` are the
        sample weights (n,) or None.
        """
        svc = SVC(
            kernel="precomputed",
            C=self.C,
            class_weight=self.class_weight,
            max_iter=max_iter,
            decision_function_shape=self.decision_function_shape,
            break_ties=self.break_ties,
            random_state=0,  # without effect on the fit; None would draw from NumPy's global state
        )
        if tol is not None:
            return svc.set_params(tol=tol).fit(K, y, weights)
        if max_iter == -1:
            for trial in TOLERANCES:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    svc.set_params(tol=trial, max_iter=MIN_ITERATIONS + 100 * len(K)).fit(K, y, weights)
                if svc.fit_status_ == 0:
                    return svc
        return svc.set_params(tol=1e-3, max_iter=max_iter).fit(K, y, weights)

    def decision_function(self, X: Batch) -> np.ndarray:
        """Return the signed distances of the m rows X to the decision boundaries, in units of the margin.

        The shape is (m,) for two classes; for C > 2 classes it is (m, C), or (m, C (C − 1) / 2) if
        ``decision_function_shape`` is "ovo".
        """
        K = self._test_gram(X)[1]
        return self.svc_.decision_function(K[:, self._used_rows])

    def predict(self, X: Batch) -> np.ndarray:
        """Return the predicted labels of the m rows X, (m,)."""
        K = self._test_gram(X)[1]
        return self.svc_.predict(K[:, self._used_rows])
