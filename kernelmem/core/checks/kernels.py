"""Checks of kernel matrices and of computed results."""

import torch
from torch import Tensor

from kernelmem.core.checks.arrays import ArrayLike, as_tensor, check_kernel_range
from kernelmem.core.errors import InputError, NumericalError
from kernelmem.core.symmetry import measure_asymmetry


def as_square_kernel(
    value: ArrayLike, name: str = "kernel", *, tolerance: float = 1e-6, any_scale: bool = False
) -> Tensor:
    """Return a kernel matrix as a symmetric float64 tensor of shape (n, n).

    Asymmetry up to ``tolerance`` times the largest entry (rounding of a float32 kernel) is averaged away. ``any_scale``
    accepts entries whose squares are outside of float64, for callers that scale the kernel.

    Raises:
        InputError: not square, empty, complex, not finite, or with entries so large or small that squares overflow or
            underflow.
        NumericalError: asymmetric beyond ``tolerance``.
    """
    kernel = as_tensor(value, name, dtype=torch.float64)
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or kernel.shape[0] == 0:
        raise InputError(
            f"{name} of shape {tuple(kernel.shape)}",
            expected="a square matrix (n, n) with n >= 1",
            hint='pass the kernel of the training rows with themselves, e.g. km.ntk(model, x, outputs="trace")',
        )
    asymmetry = measure_asymmetry(lambda rows, columns: kernel[rows, columns], len(kernel))
    if not any_scale:
        check_kernel_range(asymmetry.largest, name)
    if asymmetry.gap > tolerance * asymmetry.largest:
        raise NumericalError(
            f"{name} of shape {tuple(kernel.shape)} with asymmetry {asymmetry.gap:.3g} and entries up to {asymmetry.largest:.3g}",
            expected=f"a symmetric matrix (asymmetry at most {tolerance:g} of the largest entry)",
            hint="check that both sides were computed on the same rows, in eval mode",
        )
    if asymmetry.gap == 0:
        return kernel
    symmetric_kernel = torch.empty_like(kernel)
    measure_asymmetry(lambda rows, columns: kernel[rows, columns], len(kernel), symmetric_kernel)
    return symmetric_kernel


def check_result(result: Tensor, name: str, *, hint: str) -> Tensor:
    """Return a computed array (n, ...) if all its values are finite.

    Raises:
        NumericalError: NaN or infinite values; the message names the first rows that have them.
    """
    axes = sorted(range(result.ndim), key=result.stride, reverse=True)  # in the order of memory: torch copies others
    extremes = result.permute(axes).aminmax() if result.numel() and result.is_floating_point() else ()
    if all(bool(torch.isfinite(extreme)) for extreme in extremes):
        return result
    not_finite = ~torch.isfinite(result)
    counts = not_finite.reshape(len(result), -1).sum(1)
    # A row of its own has more such entries than the rows that only meet it in a column.
    rows = (counts == counts.max()).nonzero()[:, 0].tolist()
    raise NumericalError(
        f"{name} with {int(not_finite.sum())} NaN or infinite values, in rows {str(rows[:8])[1:-1]}"
        f"{', ...' * (len(rows) > 8)}",
        expected="finite values",
        hint=hint,
    )
