"""The tangent kernel of a model as a callable kernel(X, Y), for any estimator that takes one."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from kernelmem.core.errors import InputError
from kernelmem.kernels.ntk import ntk

__all__ = ["TangentKernel"]


@dataclass(frozen=True, eq=False)
class TangentKernel:
    """Callable kernel(X, Y) = Σ_c J_c(X) J_c(Y)ᵀ of a model, or of its mean output with ``outputs="pseudo"``.

    It holds a copy of the model: later training does not alter it. It is immutable: estimators that are cloned share it;
    it can be pickled and deep-copied. Arrays give arrays in float64, tensors give tensors, of the same values.

    Attributes:
        model: any module whose ``model(x)`` is (n, C); in eval mode where that matters.
        outputs: "trace" (sum over outputs) or "pseudo" (kernel of Σ_c f_c / √C).
        shape: shape of one row as the model takes it, e.g. (1, 8, 8), where X holds flat rows; None: as X has it.
        parameters: names of the parameters to differentiate by; None: those with requires_grad.
        forward: maps (model, batch) to (n, C) outputs, for models with other inputs.
        dtype: torch.float32 or torch.float64; None: the model's own.
        device: where to compute; None: where the model is. Tensors come back there, arrays as arrays.
        memory: bytes that a call may allocate.

    Raises:
        InputError: outputs= other than the two; what :func:`kernelmem.ntk` raises.

    Cost: that of ``km.ntk``. Estimators that call a kernel row by row (scikit-learn's KernelRidge) pay n² calls; then
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
    forward: Callable[[nn.Module, Any], Tensor] | None = None
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    memory: int | str = "4GiB"

    def __post_init__(self) -> None:
        if self.outputs not in ("trace", "pseudo"):
            raise InputError(
                f"outputs={self.outputs!r}",
                expected='"trace" or "pseudo": one value for each pair of rows',
                hint='use "trace", or km.ntk for the others',
            )
        object.__setattr__(self, "model", copy.deepcopy(self.model))
        if self.parameters is not None:
            object.__setattr__(self, "parameters", tuple(self.parameters))

    def __call__(self, X: Any, Y: Any = None) -> Any:
        """K(X, Y), (n, m); Y=None means Y = X. Two single rows of real numbers, (d,), give one number."""
        if Y is not None and _single(X) and _single(Y):  # as pairwise metrics are called
            return float(self(X[None], Y[None])[0, 0])
        K = ntk(
            self.model,
            self._rows(X),
            None if Y is None or Y is X else self._rows(Y),
            outputs=self.outputs,
            parameters=self.parameters,
            forward=self.forward,
            dtype=self.dtype,
            device=self.device,
            memory=self.memory,
        )
        return K if isinstance(X, Tensor) else K.cpu().numpy().astype(np.float64)

    def diagonal(self, X: Any) -> Any:
        """K(x, x) of each row, (n,): the squared length of its tangent."""
        n = len(X)
        parts = [self(X[i : i + 32]).diagonal() for i in range(0, n, 32)]
        return torch.cat(parts) if isinstance(X, Tensor) else np.concatenate(parts)

    def __sklearn_clone__(self) -> "TangentKernel":
        return self

    def _rows(self, X: Any) -> Any:
        if self.shape is None or not hasattr(X, "reshape"):
            return X
        return X.reshape(len(X), *self.shape)


def _single(X: Any) -> bool:
    return isinstance(X, np.ndarray) and X.ndim == 1 and X.dtype.kind == "f"
