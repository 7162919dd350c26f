"""Tangent kernel of a model as a callable kernel(X, Y) for scikit-learn estimators."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeGuard, overload

import numpy as np
import torch
from torch import Tensor, nn

from kernelmem.core.batches import Forward
from kernelmem.core.errors import InputError
from kernelmem.core.models import copy_module
from kernelmem.core.options import MEMORY
from kernelmem.kernels.ntk import ntk


@dataclass(frozen=True, eq=False)
class TangentKernel:
    """Callable kernel(X, Y) = Σ_c J_c(X) J_c(Y)ᵀ of a model, or of its mean output with ``outputs="pseudo"``.

    It holds a copy of the model, which later training does not change. It is immutable and shared by clones of an
    estimator; it can be pickled and deep-copied. For arrays it returns float64 arrays, for tensors tensors.

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
        InputError: ``outputs`` is not one of these two; also the errors of :func:`kernelmem.ntk`.

    Cost: that of ``km.ntk``. For estimators that call a kernel row by row (scikit-learn's KernelRidge, n² calls) use
    ``kernel="precomputed"`` with ``TangentKernel(model)(X, X)``.

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
        """Check ``outputs`` and copy the model, so that later training of the original does not change the kernel."""
        if self.outputs not in ("trace", "pseudo"):
            raise InputError(
                f"outputs={self.outputs!r}",
                expected='"trace" or "pseudo": one value per pair of rows',
                hint='pass outputs="trace", or use km.ntk for other outputs',
            )
        object.__setattr__(self, "model", copy_module(self.model))
        if self.parameters is not None:
            object.__setattr__(self, "parameters", tuple(self.parameters))

    @overload
    def __call__(self, X: Tensor, Y: Tensor | None = None) -> Tensor: ...
    @overload
    def __call__(self, X: np.ndarray, Y: np.ndarray | None = None) -> np.ndarray: ...
    def __call__(self, X: Tensor | np.ndarray, Y: Tensor | np.ndarray | None = None) -> Tensor | np.ndarray | float:
        """Return K(X, Y), (n, m); Y=None means Y = X. For two single rows of real numbers, (d,), return one number."""
        if _is_single_row(X) and _is_single_row(Y):  # scikit-learn calls pairwise metrics like this
            return float(self(X[None], Y[None])[0, 0])
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
        starts = range(0, len(X), 32)
        if isinstance(X, Tensor):
            return torch.cat([self(X[start : start + 32]).diagonal() for start in starts])
        return np.concatenate([self(X[start : start + 32]).diagonal() for start in starts])

    def __sklearn_clone__(self) -> "TangentKernel":
        """Return this object itself, so that clones of an estimator share one copy of the model."""
        return self

    def _as_model_inputs(self, X: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """Return the n rows X, reshaped to (n, *shape) if the shape of one input is given."""
        if self.shape is None or not hasattr(X, "reshape"):
            return X
        return X.reshape(len(X), *self.shape)


def _is_single_row(X: object) -> TypeGuard[np.ndarray]:
    """Return True if X is a one-dimensional floating-point array, that is, one row of features."""
    return isinstance(X, np.ndarray) and X.ndim == 1 and X.dtype.kind == "f"
