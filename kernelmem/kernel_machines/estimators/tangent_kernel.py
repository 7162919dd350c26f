"""Tangent kernel of a model as a callable kernel(X, Y) for scikit-learn estimators."""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Literal, TypeGuard, overload

import numpy as np
import torch
from torch import Tensor, nn

from kernelmem.core.batches import Batch, Forward
from kernelmem.core.checks import (
    as_count,
    as_dense,
    as_device,
    as_float_dtype,
    as_list,
    as_names,
    check_callable,
    check_choice,
    check_instance,
    check_model,
)
from kernelmem.core.errors import InputError
from kernelmem.core.models import copy_module
from kernelmem.core.options import MEMORY, as_bytes
from kernelmem.kernels.ntk import ntk


@dataclass(frozen=True, eq=False)
class TangentKernel:
    """Callable kernel(X, Y) = Σ_c J_c(X) J_c(Y)ᵀ of a model, or of its mean output with ``outputs="pseudo"``.

    It holds a copy of the model, which later training does not change and which clones of an estimator share; it can be
    pickled and deep-copied. For tensors it returns tensors, for other inputs float64 arrays. scikit-learn's parameter
    searches may set its attributes (``kernel__outputs``).

    Attributes:
        model: any module whose ``model(x)`` is (n, C); in eval mode if it has dropout or batch norm.
        outputs: "trace" (sum over outputs) or "pseudo" (kernel of Σ_c f_c / √C).
        shape: shape of one input of the model, e.g. (1, 8, 8), if X has flat rows; None: that of the rows of X.
        parameters: names of the differentiated parameters; None: those with requires_grad.
        forward: maps (model, batch) to (n, C) outputs, for models with other inputs.
        dtype: torch.float32 or torch.float64; None: that of the model.
        device: device of the computation and of returned tensors; None: that of the model.
        memory: bytes that a call may allocate.

    Raises:
        InputError: ``outputs`` is not one of these two; a call for two single rows; also the errors of :func:`kernelmem.ntk`.

    Cost: that of ``km.ntk``. Estimators that call a kernel once per pair of rows (scikit-learn's KernelRidge, KernelPCA)
    are refused: pass them ``kernel="precomputed"`` and ``TangentKernel(model)(X, X)`` as rows.

    Source: Jacot, Gabriel, Hongler 2018.

    >>> kernel = TangentKernel(nn.Linear(2, 3))  # linear model: C (x·x' + 1)
    >>> kernel(np.eye(2), np.eye(2)).tolist()
    [[6.0, 3.0], [3.0, 6.0]]
    """

    model: nn.Module = field(repr=False)
    outputs: Literal["trace", "pseudo"] = "trace"
    shape: tuple[int, ...] | None = None
    parameters: Iterable[str] | None = None
    forward: Forward | None = None
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    memory: int | str = MEMORY

    def __post_init__(self) -> None:
        """Copy the model, so that later training of the original does not change the kernel."""
        check_model(self.model)
        object.__setattr__(self, "model", copy_module(self.model))
        self._check_parameters()

    def _check_parameters(self) -> None:
        """Check the attributes, and read ``parameters`` and ``shape`` once."""
        check_model(self.model)
        hint = 'pass outputs="trace", or use km.ntk for other outputs'
        check_choice(self.outputs, "outputs", ("trace", "pseudo"), hint=hint)
        if self.parameters is not None:
            object.__setattr__(self, "parameters", tuple(as_names(self.parameters, "parameters") or ()))
        if self.shape is not None:
            shape = tuple(as_count(length, "length in shape") for length in as_list(self.shape, "shape"))
            object.__setattr__(self, "shape", shape)
        if self.forward is not None:
            check_callable(self.forward, "forward", ("model", "batch"))
        if self.dtype is not None:
            as_float_dtype(self.dtype)
        if self.device is not None:
            as_device(self.device)
        as_bytes(self.memory)

    @overload
    def __call__(self, X: Tensor, Y: Tensor | None = None) -> Tensor: ...
    @overload
    def __call__(self, X: np.ndarray, Y: np.ndarray | None = None) -> np.ndarray: ...
    @overload
    def __call__(self, X: Batch, Y: Batch | None = None) -> Tensor | np.ndarray: ...
    def __call__(self, X: Batch, Y: Batch | None = None) -> Tensor | np.ndarray:
        """Return K(X, Y), (n, m), for rows in any form that :func:`kernelmem.ntk` takes; Y=None means Y = X."""
        if _is_single_row(X) and _is_single_row(Y):  # scikit-learn calls pairwise metrics like this, n² times
            raise InputError(
                f"two single rows of shapes {X.shape} and {Y.shape}, from an estimator that calls its kernel for each pair",
                expected="matrices of rows (n, d) and (m, d)",
                hint='use kernel="precomputed": .fit(kernel(X, X), y) and .predict(kernel(X_test, X)); or'
                " kernelmem.KernelMachineRegressor(kernel=kernel), kernel ridge regression that calls it once",
            )
        K = ntk(
            self.model,
            self._as_model_inputs(X),
            None if Y is None or Y is X else self._as_model_inputs(Y),
            outputs=self.outputs,
            parameters=self.parameters,
            forward=self.forward,
            dtype=self.dtype,
            device=self.device,
            memory=self.memory,
        )
        return K if isinstance(X, Tensor) else K.cpu().numpy().astype(np.float64)

    @overload
    def diagonal(self, X: Tensor) -> Tensor: ...
    @overload
    def diagonal(self, X: np.ndarray) -> np.ndarray: ...
    def diagonal(self, X: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """Return the kernel value of each of the n rows X with itself, (n,), which is the squared norm of its tangent."""
        check_instance(X, "X", (Tensor, np.ndarray), hint="pass an array of rows (n, d)")
        X = as_dense(X, "X") if isinstance(X, Tensor) else X
        if X.ndim == 0 or len(X) == 0:
            raise InputError(
                f"X of shape {tuple(X.shape)}", expected="(n, d), not empty", hint="pass rows of the model"
            )
        starts = range(0, len(X), 32)
        if isinstance(X, Tensor):
            return torch.cat([self(X[start : start + 32]).diagonal() for start in starts])
        return np.concatenate([self(X[start : start + 32]).diagonal() for start in starts])

    def __sklearn_clone__(self) -> "TangentKernel":
        """Return a kernel of the same model, not of a copy of it, with attributes of its own."""
        return copy.copy(self)

    def get_params(self, deep: bool = True) -> dict[str, object]:
        """Return the attributes by name, as scikit-learn's estimators do."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def set_params(self, **parameters: object) -> "TangentKernel":
        """Set attributes by name, for scikit-learn's parameter searches; clones made before do not change.

        Raises:
            InputError: an unknown name, or a value that the constructor refuses; nothing is set.
        """
        unknown = parameters.keys() - self.get_params().keys()
        if unknown:
            raise InputError(
                f"parameter {min(unknown)!r} of a TangentKernel",
                expected=f"one of {', '.join(self.get_params())}",
                hint="in a parameter grid of an estimator, write kernel__outputs",
            )
        changed = copy.copy(self)
        for name, value in parameters.items():
            object.__setattr__(changed, name, copy_module(value) if isinstance(value, nn.Module) else value)
        changed._check_parameters()
        self.__dict__.update(changed.__dict__)
        return self

    def _as_model_inputs(self, X: Batch) -> Batch:
        """Return the n rows X, reshaped to (n, *shape) if the shape of one input is given."""
        if self.shape is None or not isinstance(X, Tensor | np.ndarray):
            return X
        if X.ndim == 0 or math.prod(X.shape[1:]) != math.prod(self.shape):
            raise InputError(
                f"X of shape {tuple(X.shape)} and shape={self.shape}",
                expected=f"{math.prod(self.shape)} numbers in each row",
                hint="pass shape= of one input of the model",
            )
        return X.reshape(len(X), *self.shape)


def _is_single_row(X: object) -> TypeGuard[np.ndarray]:
    """Return True if X is a one-dimensional floating-point array, that is, one row of features."""
    return isinstance(X, np.ndarray) and X.ndim == 1 and X.dtype.kind == "f"
