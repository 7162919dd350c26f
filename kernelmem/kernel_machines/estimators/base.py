"""What the scikit-learn estimators share: how rows become kernels, and what a prior says of them."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.linalg import LinAlgWarning
from sklearn.base import BaseEstimator
from sklearn.metrics.pairwise import PAIRWISE_KERNEL_FUNCTIONS, pairwise_kernels
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import nn

from kernelmem.core.errors import InputError
from kernelmem.kernel_machines.estimators.precomputed_kernel import StoredKernel, as_array
from kernelmem.kernel_machines.solvers.solution import Code, Solution

__all__ = ["KernelEstimator", "classes_of", "diagonal_of", "noticed", "positive_weight", "prior_outputs", "weights_of"]


class KernelEstimator(BaseEstimator):
    """Rows to kernels, by the parameters kernel, gamma, degree, coef0 and kernel_params of the estimator."""

    kernel: Any
    gamma: Any
    degree: float
    coef0: float
    kernel_params: dict[str, Any] | None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = _is(self.kernel, "precomputed")
        tags.input_tags.sparse = isinstance(self.kernel, str) and not tags.input_tags.pairwise
        return tags

    def _read(self, X: Any, y: Any = "no_validation", *, reset: bool, multi_output: bool = True) -> Any:
        """Validate rows, and targets if given, as scikit-learn does; memory-mapped kernels are not copied."""
        arguments: dict[str, Any] = {"reset": reset}
        X, y = as_array(X), as_array(y)
        if isinstance(self.kernel, str) and not _is(self.kernel, "precomputed"):
            if self.kernel not in PAIRWISE_KERNEL_FUNCTIONS:
                raise _unknown(self.kernel)
            arguments |= {"accept_sparse": ("csr", "csc"), "dtype": (np.float64, np.float32)}
        elif not isinstance(self.kernel, str):
            one_number = np.ndim(X) == 1 and (isinstance(self.kernel, StoredKernel) or not callable(self.kernel))
            X = np.asarray(X)[:, None] if one_number else X
            arguments |= {"allow_nd": True}
        if isinstance(y, str):
            return validate_data(self, X, **arguments)
        return validate_data(self, X, y, multi_output=multi_output, **arguments)

    def _gram(self, X: Any, Y: Any = None) -> Any:
        """Kernel of rows X with rows Y, (n, m); a precomputed X is itself that of the training rows."""
        if _is(self.kernel, "precomputed"):
            if X.shape[0] != X.shape[1]:
                raise InputError(
                    f"X of shape {X.shape} with kernel='precomputed'",
                    expected="the square kernel (n, n) of the training rows with themselves",
                    hint='compute it, or name a kernel: kernel="rbf"',
                )
            return X
        if isinstance(self.kernel, str):
            named = {"gamma": self._gamma, "degree": self.degree, "coef0": self.coef0, **(self.kernel_params or {})}
            return pairwise_kernels(X, Y, metric=self.kernel, filter_params=True, **named)
        kernel = self.kernel if callable(self.kernel) else StoredKernel(self.kernel)
        K = kernel(X, X if Y is None else Y, **(self.kernel_params or {}))
        K = np.asarray(as_array(K))
        expected = (len(X), len(X if Y is None else Y))
        if K.shape != expected:
            raise InputError(
                f"a kernel(X, Y) that returned shape {K.shape}",
                expected=f"{expected}, a value for each pair of rows",
                hint="return a matrix; for a function of two single rows use sklearn.metrics.pairwise.pairwise_kernels",
            )
        return K

    def _resolve_gamma(self, X: Any, weights: np.ndarray | None = None) -> None:
        """Fix gamma at what the training rows say: "scale" is 1 / (d var X), weighted, "auto" and None 1 / d."""
        gamma = self.gamma
        if isinstance(gamma, str):
            if gamma not in ("scale", "auto"):
                raise InputError(f"gamma={gamma!r}", expected='a number, "scale", "auto" or None', hint='pass "scale"')
            gamma = None
            if self.gamma == "scale" and isinstance(self.kernel, str) and not _is(self.kernel, "precomputed"):
                variance = _variance(X, weights)
                gamma = 1.0 / (X.shape[1] * variance) if variance > 0 else 1.0
        self._gamma = gamma

    def _test_gram(self, X: Any) -> tuple[Any, np.ndarray]:
        """Validated rows, and their kernel with the training rows, (m, n), float64."""
        check_is_fitted(self)
        X = self._read(X, reset=False)
        K = X if _is(self.kernel, "precomputed") else self._gram(X, self.X_fit_)
        return X, np.asarray(K, dtype=np.float64)

    def _keep(self, X: Any) -> None:
        # A precomputed kernel is not kept: the rows of a test kernel are already against the training rows.
        self.X_fit_ = None if _is(self.kernel, "precomputed") else X


def prior_outputs(prior: Any, kernel: Any, X: Any, n_outputs: int | None = None) -> np.ndarray | float:
    """Outputs f_0(X) of a prior, (n, C) float64; 0 without one.

    Raises:
        InputError: a prior with a precomputed kernel, whose rows it cannot see; a shape that is not (n,) or (n, C).
    """
    if prior is None:
        return 0.0
    if _is(kernel, "precomputed"):
        raise InputError(
            "prior= with kernel='precomputed'",
            expected="rows that the prior can be computed on",
            hint="fit y - f_0, and add f_0 of the test rows to the predictions",
        )
    outputs = _outputs(prior, X)
    outputs = outputs if outputs.ndim == 2 else outputs[:, None]
    if len(outputs) != X.shape[0] or outputs.ndim != 2 or n_outputs not in (None, outputs.shape[1]):
        raise InputError(
            f"a prior that returned shape {outputs.shape}",
            expected=f"({X.shape[0]}, {'C' if n_outputs is None else n_outputs}), an output for each row",
            hint="return the outputs f_0 of the rows, with the columns of the targets",
        )
    return outputs


def noticed(solution: Solution) -> Solution:
    """Pass a usable solution on, with a warning if the system was singular up to rounding.

    Raises:
        NumericalError: it is not usable.
    """
    if solution.require().code is Code.singular:
        warnings.warn(
            f"{solution.code.meaning} ({solution.detail}); a larger ridge would make it regular",
            LinAlgWarning,
            stacklevel=4,
        )
    return solution


def positive_weight(sample_weight: Any, X: Any) -> np.ndarray:
    """Which rows have weight, (n,) bool: all of them without weights.

    Raises:
        ValueError: weights that are negative, not finite, or not one a row.
    """
    if sample_weight is None:
        return np.ones(X.shape[0], dtype=bool)
    return weights_of(sample_weight, X) > 0


def weights_of(sample_weight: Any, X: Any) -> np.ndarray:
    """Sample weights as (n,) float64.

    Raises:
        ValueError: weights that are negative, not finite, or not one a row.
    """
    return _check_sample_weight(as_array(sample_weight), X, dtype=np.float64, ensure_non_negative=True)


def classes_of(y: np.ndarray) -> np.ndarray:
    """The labels in order, (C,).

    Raises:
        InputError: fewer than two.
    """
    classes = np.unique(y)
    if len(classes) < 2:
        raise InputError(
            f"labels of {len(classes)} class among the rows with weight",
            expected="at least two classes",
            hint="include rows of another class",
        )
    return classes


def diagonal_of(kernel: Callable[[Any], np.ndarray], X: Any, block: int = 64) -> np.ndarray:
    """K(x, x) of each row, (m,), from small square blocks of the kernel."""
    parts = [np.diagonal(kernel(X[i : i + block])) for i in range(0, X.shape[0], block)]
    return np.concatenate(parts).astype(np.float64)


def _variance(X: Any, weights: np.ndarray | None) -> float:
    """Variance of all entries of X; an entry of a row of weight w counts w times."""
    if weights is None:
        return float(X.multiply(X).mean() - X.mean() ** 2) if hasattr(X, "multiply") else float(X.var())
    share = weights / (weights.sum() * X.shape[1])
    squares = X.multiply(X) if hasattr(X, "multiply") else np.square(X)
    return float(share @ np.asarray(squares.sum(axis=1)).ravel() - (share @ np.asarray(X.sum(axis=1)).ravel()) ** 2)


def _outputs(prior: Any, X: Any) -> np.ndarray:
    if isinstance(prior, nn.Module):
        first = next((p for p in prior.parameters() if p.is_floating_point()), None)
        dtype = torch.float64 if first is None else first.dtype
        device = None if first is None else first.device
        rows = torch.as_tensor(np.asarray(X), device=device)
        with torch.no_grad():
            found = prior(rows.to(dtype) if rows.is_floating_point() else rows)
    else:
        found = prior(X)
    return np.asarray(as_array(found), dtype=np.float64)


def _is(kernel: Any, name: str) -> bool:
    return isinstance(kernel, str) and kernel == name


def _unknown(kernel: str) -> InputError:
    names = ", ".join(sorted(PAIRWISE_KERNEL_FUNCTIONS))
    return InputError(
        f"kernel={kernel!r}",
        expected=f'"precomputed", a callable kernel(X, Y), an array, or one of {names}',
        hint='pass kernel="rbf"',
    )
