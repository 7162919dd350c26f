"""Arrays of finite numbers from tensors, NumPy arrays and nested sequences."""

from typing import TypeAlias

import numpy as np
import numpy.typing
import torch
from torch import Tensor

from kernelmem.core.errors import InputError

ArrayLike: TypeAlias = Tensor | numpy.typing.ArrayLike
"""A tensor, a NumPy array, or numbers in nested sequences."""

REAL_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGER_DTYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
COMPLEX_DTYPES = (torch.complex64, torch.complex128)

# Entries of a kernel whose squares, summed over the kernel, neither overflow nor underflow in float64.
MAX_ENTRY, MIN_ENTRY = 1e140, 1e-140


def as_tensor(
    value: ArrayLike,
    name: str,
    *,
    dtype: torch.dtype | None = None,
    allow_complex: bool = False,
    squared: bool = False,
) -> Tensor:
    """Return ``value`` as a dense tensor of finite numbers.

    Args:
        value: a tensor, an array, or numbers in nested sequences.
        name: name of the argument, for error messages.
        dtype: floating-point type of the result; None: that of ``value``.
        squared: the caller squares the numbers, so that they must be at most 1e140, and not all below 1e-140.
        allow_complex: accept complex numbers, which are refused otherwise: a conversion would drop the imaginary part.

    Raises:
        InputError: not convertible to numbers, sparse, masked or complex, or with NaN, infinite values or values beyond
            the range of ``dtype``.
    """
    tensor = as_dense(value, name) if isinstance(value, Tensor) else _from_numpy(value, name)
    if tensor.is_complex() and not allow_complex:
        raise InputError(
            f"{name} of shape {tuple(tensor.shape)} and dtype {tensor.dtype}".replace("torch.", ""),
            expected="real numbers",
            hint=f"pass {name}.real if the imaginary part is zero; it is never dropped silently",
        )
    tensor = check_finite(tensor, name)
    if squared and tensor.is_floating_point() and tensor.numel():
        check_kernel_range(float(tensor.abs().max()), name)
    if dtype is None or dtype == tensor.dtype:
        return tensor
    converted = tensor.to(dtype)
    return converted if torch.finfo(dtype).max >= _largest(tensor.dtype) else check_finite(converted, name, dtype)


def as_indices(
    value: ArrayLike, name: str, n: int, *, what: str = "row", distinct: bool = True, hint: str = ""
) -> Tensor:
    """Return indices in 0..n-1 as int64 on the CPU, from whole numbers or from a mask (n,).

    Args:
        value: the indices or the mask.
        name: name of the argument, for error messages.
        n: number of things to choose from.
        what: what is chosen, for error messages.
        distinct: refuse an index that is given twice.
        hint: hint of the error; "": that a mask can be passed.

    Raises:
        InputError: none is chosen, an index is out of range, negative or (``distinct``) repeated, or a mask of another length.
    """
    chosen = as_tensor(value, name).cpu()
    if chosen.dtype == torch.bool and tuple(chosen.shape) == (n,):
        chosen = chosen.nonzero()[:, 0]
    is_integer = not chosen.is_floating_point() and chosen.dtype != torch.bool
    if (
        chosen.ndim != 1
        or not len(chosen)
        or not is_integer
        or int(chosen.min()) < 0
        or int(chosen.max()) >= n
        or (distinct and len(chosen.unique()) < len(chosen))
    ):
        raise InputError(
            f"{name} of shape {tuple(chosen.shape)} and dtype {chosen.dtype}".replace("torch.", ""),
            expected=f"at least one {what}, as {'distinct ' * distinct}whole numbers in 0..{n - 1} or a mask ({n},)",
            hint=hint or f"pass a list of numbers, or {name}=torch.ones({n}, dtype=torch.bool) for all",
        )
    return chosen.to(torch.int64)


def check_finite(tensor: Tensor, name: str, converted_to: torch.dtype | None = None) -> Tensor:
    """Return ``tensor`` if all its values are finite.

    ``converted_to`` is named in the message if finite values became infinite in a conversion.

    Raises:
        InputError: NaN or infinite values; the message states their number and the index of the first.
    """
    # One pass without a second array: the minimum and maximum of a tensor with NaN are NaN.
    extremes = tensor.aminmax() if tensor.is_floating_point() and tensor.numel() else ()
    if extremes and all(bool(torch.isfinite(extreme)) for extreme in extremes):
        return tensor
    if tensor.is_floating_point() or tensor.is_complex():
        not_finite = ~torch.isfinite(tensor)
        if bool(not_finite.any()):
            first = tuple(int(i) for i in not_finite.nonzero()[0])
            kind = "NaN or infinite values" if converted_to is None else f"values beyond the range of {converted_to}"
            raise InputError(
                f"{name} of shape {tuple(tensor.shape)} with {int(not_finite.sum())} {kind} (the first at index"
                f" {first})".replace("torch.", ""),
                expected="finite numbers",
                hint="remove or impute these rows; if they come from a model, it has diverged"
                if converted_to is None
                else f"scale {name}, or compute with dtype=torch.float64",
            )
    return tensor


def check_kernel_range(largest: float, name: str) -> None:
    """Check that squares of the entries of an array stay within float64, from its largest absolute entry.

    Raises:
        InputError: the largest entry is above 1e140, or below 1e-140 and not 0.
    """
    if largest > MAX_ENTRY or 0 < largest < MIN_ENTRY:
        raise InputError(
            f"{name} with entries up to {largest:.3g}",
            expected=f"entries of at most {MAX_ENTRY:g}, and not all below {MIN_ENTRY:g}, whose squares are in float64",
            hint=f"multiply {name} by a constant, so that its largest entry is near 1",
        )


def as_dense(tensor: Tensor, name: str) -> Tensor:
    """Return a detached tensor of numbers that are in memory, one after the other; the numbers are not checked.

    Raises:
        InputError: a sparse, nested or meta tensor, or numbers that torch hardly computes with (quantized, float8).
    """
    kind = ""
    if tensor.is_nested:
        kind = "nested"
    elif tensor.layout is not torch.strided:
        kind = str(tensor.layout).removeprefix("torch.")
    elif tensor.is_meta:
        kind = "meta"
    elif tensor.dtype not in (*REAL_DTYPES, *INTEGER_DTYPES, *COMPLEX_DTYPES):
        kind = str(tensor.dtype).removeprefix("torch.")
    if kind:
        raise InputError(
            f"{name}, a tensor of kind {kind}",
            expected="a dense tensor of numbers",
            hint=f"pass {name}.to_dense()" if kind.startswith("sparse") else "convert it to float32, with its numbers",
        )
    return tensor.detach()


def as_array(value: object, name: str) -> np.ndarray:
    """Return ``value`` as NumPy reads it, also if that is an array of objects or text.

    Raises:
        InputError: NumPy does not make an array of it, or entries are masked.
    """
    try:
        array = np.asanyarray(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise _conversion_error(value, name, str(error)[:200]) from error
    if isinstance(array, np.ma.MaskedArray):
        if bool(np.ma.getmaskarray(array).any()):
            raise _conversion_error(value, name, "masked entries, whose values are undefined")
        array = array.data
    return array


def _from_numpy(value: object, name: str) -> Tensor:
    """Convert anything that NumPy reads as an array of numbers."""
    array = as_array(value, name)
    if array.dtype.kind not in "biufc" or array.dtype.itemsize > 16:
        reason = "text" if array.dtype.kind in "US" else "ragged or non-numeric content"
        raise _conversion_error(value, name, f"{reason}, an array of dtype {array.dtype}")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # not supported by most operations of torch
        if array.size and int(array.max()) >= 2**63:
            raise _conversion_error(value, name, "values beyond the range of int64")
        array = array.astype(np.int64)
    elif array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _conversion_error(value: object, name: str, reason: str) -> InputError:
    hint = f"convert {name} with numpy.asarray or torch.as_tensor first"
    if hasattr(value, "toarray"):  # a sparse matrix of SciPy
        hint = f"pass {name}.toarray()"
    elif reason.startswith("text"):
        hint = (
            "turn text into numbers first, e.g. with TfidfVectorizer().fit_transform(texts).toarray() of scikit-learn"
        )
    return InputError(
        f"{name} of type {type(value).__name__} ({reason})", expected="a tensor or an array of numbers", hint=hint
    )


def _largest(dtype: torch.dtype) -> float:
    """Return the largest number of a dtype, of its real part if it is complex."""
    if dtype is torch.bool:
        return 1.0
    return float((torch.finfo(dtype) if dtype.is_floating_point or dtype.is_complex else torch.iinfo(dtype)).max)
