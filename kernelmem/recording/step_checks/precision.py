"""Precision in which a training step computes its gradients: autocast, loss scaling, and the rounding to expect."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
TF32_TOLERANCE = 3e-3  # relative, if factors of float32 products are rounded to 11 bits, as CUDA does in convolutions
HALF_TOLERANCE = 3e-2  # relative, for bfloat16 and float16: a few roundings


@dataclass(frozen=True)
class Precision:
    """How a gradient was computed: under ``torch.autocast``, of a loss that a GradScaler multiplied by a number."""

    device_type: str = "cpu"
    autocast: torch.dtype | None = None
    loss_scale: float = 1.0

    @property
    def autocast_name(self) -> str | None:
        """Name of the dtype of autocast, None without it."""
        return None if self.autocast is None else str(self.autocast).removeprefix("torch.")

    def autocasting(self) -> AbstractContextManager[object]:
        """Return the context of the forward pass and the loss."""
        return nullcontext() if self.autocast is None else torch.autocast(self.device_type, self.autocast)

    def gradients(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
        """Return the gradients of ``loss``, scaled during the backward pass and unscaled in float32, as a GradScaler does."""
        if self.loss_scale == 1.0:
            return list(torch.autograd.grad(loss, parameters, allow_unused=True))
        scale = torch.tensor(self.loss_scale, dtype=torch.float32, device=loss.device)
        inverse = scale.double().reciprocal().float()
        scaled = torch.autograd.grad(loss * scale, parameters, allow_unused=True)
        return [None if gradient is None else gradient * inverse.to(gradient.dtype) for gradient in scaled]

    def tolerance(self, parameters: Iterable[nn.Parameter]) -> float:
        """Return the relative difference of two gradients of ``parameters`` that rounding explains."""
        dtypes = {parameter.dtype for parameter in parameters}
        if self.autocast is not None and dtypes != {torch.float64}:  # autocast leaves float64 alone
            return HALF_TOLERANCE
        tolerances = {TOLERANCES.get(dtype, HALF_TOLERANCE) for dtype in dtypes}
        if self.device_type == "cuda" and torch.float32 in dtypes and _uses_tf32():
            tolerances.add(TF32_TOLERANCE)
        return max(tolerances, default=HALF_TOLERANCE)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype of ``torch.autocast`` on the type of ``device``; None outside autocast."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def _uses_tf32() -> bool:
    cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
    return "tf32" in (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, cublas.fp32_precision)
