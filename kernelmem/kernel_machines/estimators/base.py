"""Base class of the scikit-learn estimators: from rows to kernel matrices; prior, sample weights, classes."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from scipy.linalg import LinAlgWarning
from scipy.sparse import issparse
from sklearn.base import BaseEstimator
from sklearn.metrics.pairwise import PAIRWISE_KERNEL_FUNCTIONS, pairwise_kernels
from sklearn.utils import Tags
from sklearn.utils.validation import (
    _check_sample_weight,
    _check_y,
    check_consistent_length,
    check_is_fitted,
    validate_data,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kernelmem.core.batches import Batch, Rows, as_rows
from kernelmem.core.checks import ArrayLike, as_number, as_tensor, check_callable, check_instance
from kernelmem.core.errors import InputError, UnsupportedModelError
from kernelmem.kernel_machines.estimators.precomputed_kernel import StoredKernel, as_array
from kernelmem.kernel_machines.solvers.solution import Code, Solution
from kernelmem.kernels import KernelStore

Kernel: TypeAlias = str | Callable[..., ArrayLike] | ArrayLike
"""A scikit-learn pairwise name, "precomputed", a callable kernel(X, Y), or an array (N, N)."""
Prior: TypeAlias = nn.Module | Callable[[np.ndarray], ArrayLike]
"""Prior function f_0: a torch module, or a callable on X."""


RANDOM_OR_COUPLED = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)
"""Modules that in train mode are random, or mix rows and change their running statistics."""


class KernelEstimator(BaseEstimator):
    """Base class of the estimators; it computes kernel matrices.

    The kernel is defined by the parameters kernel, gamma, degree, coef0 and kernel_params.
    """

    kernel: Kernel
    gamma: float | str | None
    degree: float
    coef0: float
    kernel_params: Mapping[str, object] | None
    X_fit_: np.ndarray | None

    def __sklearn_tags__(self) -> Tags:
        """Return scikit-learn's tags.

        They state that X is a kernel matrix if the kernel is "precomputed", and may be sparse for other named kernels.
        """
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = _is_named(self.kernel, "precomputed")
        tags.input_tags.sparse = isinstance(self.kernel, str) and not tags.input_tags.pairwise
        return tags

    def _validate(self, X: Batch, *, reset: bool) -> np.ndarray:
        """Check the rows X with scikit-learn's ``validate_data`` and return them as an array.

        A memory-mapped kernel is not copied. ``reset`` is True in ``fit``, where the number of features is stored, and False
        in ``predict``, where it is compared. Dicts and tuples of tensors become :class:`Rows`, sliced as arrays are.
        """
        if _is_structured(X):
            return self._structured_rows(X)
        arguments = self._validation_arguments(X, reset=reset)
        return validate_data(self, **arguments)  # pyright: ignore[reportReturnType]

    def _validate_targets(self, X: Batch, y: ArrayLike, *, multi_output: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Check training rows X and targets y with scikit-learn's ``validate_data`` and return both as arrays.

        A memory-mapped kernel is not copied. ``multi_output`` allows targets with several columns.
        """
        self._check_parameters()
        if _is_structured(X):
            rows, targets = self._structured_rows(X), _check_y(as_array(y), multi_output=multi_output)
            check_consistent_length(rows, targets)
            return rows, targets
        if isinstance(X, KernelStore) and _is_named(self.kernel, "precomputed"):  # streamed, not read into an array
            store = cast(np.ndarray, X)
            targets = _check_y(as_array(y), multi_output=multi_output)
            if store.shape[0] != len(targets):
                raise InputError(
                    f"a stored kernel of {store.shape[0]} rows and {len(targets)} targets",
                    expected="one target per row",
                    hint="pass the targets of all rows, in the order of the store",
                )
            self.n_features_in_ = store.shape[1]
            return store, targets
        arguments = self._validation_arguments(X, reset=True)
        return validate_data(self, y=as_array(y), multi_output=multi_output, **arguments)  # pyright: ignore[reportArgumentType, reportReturnType]

    def _check_parameters(self) -> None:
        """Check the parameters that define kernel and prior; scikit-learn's estimators do so in ``fit``.

        Raises:
            InputError: a parameter of another type, or a function that does not take (X, Y), or X.
        """
        if callable(self.kernel) and not self.kernel_params:
            check_callable(self.kernel, "kernel", ("X", "Y"))
        if self.kernel_params is not None:
            check_instance(self.kernel_params, "kernel_params", Mapping, hint="pass a dict of the kernel's parameters")
        if self.gamma is not None and not isinstance(self.gamma, str):
            as_number(self.gamma, "gamma")
        as_number(self.degree, "degree")
        as_number(self.coef0, "coef0", minimum=-math.inf)
        prior = getattr(self, "prior", None)
        if isinstance(prior, nn.Module):
            check_eval_mode(prior)
        elif prior is not None:
            check_callable(prior, "prior", ("X",))

    def _structured_rows(self, X: Batch) -> np.ndarray:
        """Return a dict or tuple of tensors, a Dataset or a DataLoader as :class:`Rows`.

        Raises:
            InputError: the kernel is not a callable on such rows.
        """
        if not callable(self.kernel) or isinstance(self.kernel, StoredKernel):
            raise InputError(
                f"X of type {type(X).__name__} with a kernel of type {type(self.kernel).__name__}",
                expected="an array of rows (n, d)",
                hint="pass kernel=kernelmem.TangentKernel(model, forward=...) for the inputs of a model",
            )
        return cast(np.ndarray, as_rows(X, "X"))

    def _validation_arguments(self, X: Batch, *, reset: bool) -> dict[str, Any]:
        """Return the keyword arguments for scikit-learn's ``validate_data`` that suit the type of the kernel, including X.

        Raises:
            InputError: the kernel is a string that is not a known kernel name.
        """
        X = as_array(X)
        arguments: dict[str, Any] = {"X": X, "reset": reset}
        if isinstance(self.kernel, str) and not _is_named(self.kernel, "precomputed"):
            if self.kernel not in PAIRWISE_KERNEL_FUNCTIONS:
                raise _unknown_kernel_error(self.kernel)
            arguments |= {"accept_sparse": ("csr", "csc"), "dtype": (np.float64, np.float32)}
        elif not isinstance(self.kernel, str):
            are_row_numbers = np.ndim(cast(np.ndarray, X)) == 1 and (
                isinstance(self.kernel, StoredKernel) or not callable(self.kernel)
            )
            arguments |= {"X": np.asarray(X)[:, None] if are_row_numbers else X, "allow_nd": True}
        return arguments

    def _gram(self, X: np.ndarray, Y: np.ndarray | None = None) -> np.ndarray:
        """Return the kernel matrix (n, m) of the n rows X with the m rows Y; Y=None means Y = X.

        With ``kernel="precomputed"`` X is already the kernel matrix of the training rows and is returned unchanged.

        Raises:
            InputError: the kernel matrix has a wrong shape.
        """
        if _is_named(self.kernel, "precomputed"):
            if X.shape[0] != X.shape[1]:
                raise InputError(
                    f"X of shape {X.shape} with kernel='precomputed'",
                    expected="the square kernel (n, n) of the training rows with themselves",
                    hint='compute it, or name a kernel: kernel="rbf"',
                )
            return X
        if isinstance(self.kernel, str):
            params = {"gamma": self._gamma, "degree": self.degree, "coef0": self.coef0, **(self.kernel_params or {})}
            with np.errstate(over="ignore", invalid="ignore"):  # solver and predictions check that values are finite
                return pairwise_kernels(X, Y, metric=self.kernel, filter_params=True, **params)
        kernel = self.kernel if callable(self.kernel) else StoredKernel(self.kernel)
        left, right = (side.tree if isinstance(side, Rows) else side for side in (X, X if Y is None else Y))
        K = kernel(left, right, **(self.kernel_params or {}))
        if not isinstance(K, KernelStore):
            K = np.asarray(as_array(K))
        expected = (len(X), len(X if Y is None else Y))
        if K.shape != expected:
            raise InputError(
                f"kernel(X, Y) of shape {K.shape}",
                expected=f"{expected}, one value per pair of rows",
                hint="return a matrix; for a function of two single rows use sklearn.metrics.pairwise.pairwise_kernels",
            )
        return cast(np.ndarray, K)  # a KernelStore is read by blocks, as a memory-mapped array

    def _resolve_gamma(self, X: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Compute the number gamma of the named kernels from the n training rows X with d features, and store it.

        "scale" means 1 / (d var X), with the variance over all entries, weighted by ``weights`` (n,); "auto" and None mean
        scikit-learn's default 1 / d.
        """
        gamma = self.gamma
        if isinstance(gamma, str):
            if gamma not in ("scale", "auto"):
                raise InputError(f"gamma={gamma!r}", expected='a number, "scale", "auto" or None', hint='pass "scale"')
            gamma = None
            if self.gamma == "scale" and isinstance(self.kernel, str) and not _is_named(self.kernel, "precomputed"):
                variance = _variance(X, weights)
                gamma = 1.0 / (X.shape[1] * variance) if variance > 0 else 1.0
        self._gamma = gamma

    def _test_gram(self, X: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Return the m validated test rows X and their kernel matrix with the n training rows, (m, n) float64."""
        check_is_fitted(self)
        rows = self._validate(X, reset=False)
        K = rows if _is_named(self.kernel, "precomputed") else self._gram(rows, self.X_fit_)
        K = np.asarray(K, dtype=np.float64)
        if not np.isfinite(K.sum()) and not bool(np.isfinite(K).all()):
            raise InputError(
                "rows X whose kernel with the training rows has NaN or infinite values",
                expected="finite kernel values",
                hint="scale the rows as those of the training set",
            )
        return rows, K

    def _store_rows(self, X: np.ndarray) -> None:
        # Not needed for a precomputed kernel: a test kernel already refers to the training rows.
        self.X_fit_ = None if _is_named(self.kernel, "precomputed") else X


def prior_outputs(
    prior: Prior | None, kernel: Kernel, X: np.ndarray, n_outputs: int | None = None
) -> np.ndarray | float:
    """Return the outputs f_0(X) of the prior function, (n, C) float64, for n rows X and C outputs; 0 if there is no prior.

    Raises:
        InputError: a prior is given with kernel="precomputed", where X holds kernel values and not the rows that the prior
            needs; or its outputs are not (n,) or (n, C).
    """
    if prior is None:
        return 0.0
    if _is_named(kernel, "precomputed"):
        raise InputError(
            "prior= with kernel='precomputed'",
            expected="a kernel of rows, so that the prior can be computed on them",
            hint="fit y - f_0, and add f_0 of the test rows to the predictions",
        )
    outputs = _evaluate_prior(prior, X)
    outputs = outputs[:, None] if outputs.ndim == 1 else outputs
    if outputs.ndim != 2 or len(outputs) != X.shape[0] or n_outputs not in (None, outputs.shape[1]):
        raise InputError(
            f"prior outputs of shape {outputs.shape}",
            expected=f"({X.shape[0]}, {'C' if n_outputs is None else n_outputs}), one output per row",
            hint="return the outputs f_0 of the rows, with the columns of the targets",
        )
    return outputs


def checked_solution(solution: Solution) -> Solution:
    """Return the solution of a linear system if it is usable, and warn if the system is singular up to rounding.

    Raises:
        NumericalError: the solution is not usable.
    """
    if solution.require().code is Code.singular:
        warnings.warn(
            f"{solution.code.meaning} ({solution.detail}); a larger ridge makes it regular",
            LinAlgWarning,
            stacklevel=4,
        )
    return solution


def has_positive_weight(sample_weight: ArrayLike | None, X: np.ndarray) -> np.ndarray:
    """Return a mask, (n,) bool, of the n rows X whose sample weight is positive; without weights all entries are True.

    Raises:
        ValueError: weights that are negative, not finite, or not one per row.
    """
    if sample_weight is None:
        return np.ones(X.shape[0], dtype=bool)
    return check_sample_weight(sample_weight, X) > 0


def check_sample_weight(sample_weight: ArrayLike, X: np.ndarray) -> np.ndarray:
    """Check the sample weights of the n rows X and return them as (n,) float64.

    Raises:
        ValueError: weights that are negative, not finite, or not one per row.
    """
    return _check_sample_weight(as_array(sample_weight), X, dtype=np.float64, ensure_non_negative=True)


def distinct_classes(y: np.ndarray) -> np.ndarray:
    """Return the C distinct labels in y, sorted, (C,).

    Raises:
        InputError: there are fewer than two distinct labels.
    """
    classes = np.unique(y)
    if len(classes) < 2:
        raise InputError(
            f"labels of {len(classes)} class among the rows with weight",
            expected="at least two classes",
            hint="include rows of another class",
        )
    return classes


def kernel_diagonal(kernel: Callable[[np.ndarray], np.ndarray], X: np.ndarray, block_size: int = 64) -> np.ndarray:
    """Return the kernel value k(x, x) of each of the m rows X with itself, (m,) float64.

    ``kernel`` maps rows to their square kernel matrix and is called on at most ``block_size`` rows at a time.
    """
    diagonals = [np.diagonal(kernel(X[start : start + block_size])) for start in range(0, X.shape[0], block_size)]
    return np.concatenate(diagonals).astype(np.float64)


def _variance(X: Any, weights: np.ndarray | None) -> float:  # array or sparse matrix
    """Return the variance of all entries of the array or sparse matrix X (n, d).

    With ``weights`` (n,), an entry in a row of weight w counts w times.
    """
    if weights is None:
        return float(X.multiply(X).mean() - X.mean() ** 2) if hasattr(X, "multiply") else float(X.var())
    entry_weights = weights / (weights.sum() * X.shape[1])
    squared_entries = X.multiply(X) if hasattr(X, "multiply") else np.square(X)
    return float(
        entry_weights @ np.asarray(squared_entries.sum(axis=1)).ravel()
        - (entry_weights @ np.asarray(X.sum(axis=1)).ravel()) ** 2
    )


def check_eval_mode(prior: nn.Module) -> None:
    """Check that the outputs of a prior on a row depend on nothing else, and that it does not change when it is called.

    Raises:
        UnsupportedModelError: dropout or batch normalization in train mode.
    """
    for name, module in prior.named_modules():
        if module.training and isinstance(module, RANDOM_OR_COUPLED):
            raise UnsupportedModelError(
                f"prior with {type(module).__name__} {name!r} in train mode",
                expected="a function of each row alone",
                hint="call prior.eval() first",
            )


def _evaluate_prior(prior: Prior, X: np.ndarray) -> np.ndarray:
    """Return the outputs of the prior function on the rows X as a float64 array.

    A torch module is evaluated in the dtype and on the device of its parameters.
    """
    try:
        outputs = _call_prior(prior, X)
    except Exception as error:  # raised by the user's function, so of any type
        raise InputError(
            f"rows of shape {X.shape[1:]} that the prior does not accept ({error})",
            expected="a function of the rows X",
            hint="pass prior=lambda X: ... that returns outputs (n, C)",
        ) from error
    return as_tensor(outputs, "outputs of the prior").cpu().double().numpy()


def _call_prior(prior: Prior, X: np.ndarray) -> ArrayLike:
    """Return the outputs of the prior function on the rows X, not checked."""
    if isinstance(prior, nn.Module):
        first_parameter = next((parameter for parameter in prior.parameters() if parameter.is_floating_point()), None)
        dtype = torch.float64 if first_parameter is None else first_parameter.dtype
        device = None if first_parameter is None else first_parameter.device
        rows = X if isinstance(X, Rows) else Rows(torch.as_tensor(np.asarray(X)), X.shape[0])
        with torch.no_grad():
            return prior(rows.to(dtype=dtype, device=device or torch.device("cpu")).tree)
    return prior(X.tree if isinstance(X, Rows) else X)


def _is_structured(X: object) -> bool:
    """Return True for inputs of a model that are not one array: a dict or tuple of tensors, a Dataset or DataLoader."""
    if issparse(X):  # scipy's sparse dicts are mappings too
        return False
    return isinstance(X, Mapping | Dataset | DataLoader | Rows) or (
        isinstance(X, tuple) and len(X) > 0 and isinstance(X[0], Tensor | Mapping)
    )


def _is_named(kernel: Kernel, name: str) -> bool:
    """Return True if the kernel is a string that equals ``name``."""
    return isinstance(kernel, str) and kernel == name


def _unknown_kernel_error(kernel: str) -> InputError:
    """Return the error for a kernel name that scikit-learn does not know; it lists the known names."""
    names = ", ".join(sorted(PAIRWISE_KERNEL_FUNCTIONS))
    return InputError(
        f"kernel={kernel!r}",
        expected=f'"precomputed", a callable kernel(X, Y), an array, or one of {names}',
        hint='pass kernel="rbf"',
    )
