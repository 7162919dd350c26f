"""Checks of what users pass in: arrays, labels, kernels and seeds are read here, with an error that says what to fix."""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import TypeAlias

import numpy as np
import numpy.typing
import torch
from torch import Tensor

from kernelmem.core.errors import InputError, NumericalError
from kernelmem.core.symmetry import measure_asymmetry

ArrayLike: TypeAlias = Tensor | numpy.typing.ArrayLike
"""A tensor, a NumPy array, or numbers in nested sequences."""


def as_tensor(value: ArrayLike, name: str, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return ``value`` as a tensor of finite numbers.

    Raises:
        InputError: not convertible to numbers, or holds NaN or infinite values.
    """
    if isinstance(value, Tensor):
        tensor = value.detach()
    else:
        try:
            array = np.asarray(value)
            if array.dtype == object:
                raise TypeError("ragged or non-numeric content (object array)")
            tensor = torch.from_numpy(np.array(array, order="C"))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{name} of type {type(value).__name__} ({error})",
                expected="a tensor or an array of numbers",
                hint=f"convert {name} with numpy.asarray or torch.as_tensor first",
            ) from error
    if dtype is not None:
        tensor = tensor.to(dtype)
    return check_finite(tensor, name)


def check_finite(tensor: Tensor, name: str) -> Tensor:
    """Return ``tensor`` if all its values are finite.

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
            raise InputError(
                f"{name} of shape {tuple(tensor.shape)} with {int(not_finite.sum())} NaN or infinite values"
                f" (the first at index {first})",
                expected="finite numbers",
                hint="remove or impute these rows; if they come from a model, it has diverged",
            )
    return tensor


def as_labels(value: ArrayLike, name: str, *, n: int | None = None, n_classes: int | None = None) -> Tensor:
    """Return class labels as an int64 tensor of shape (n,) with values in 0..n_classes-1.

    A column (n, 1) is one label per row. Floating-point labels are accepted if all of them are whole numbers.

    Raises:
        InputError: text, a wrong number of dimensions or labels, or labels that are fractional, negative or not below
            ``n_classes``; the hint names the conversion that these labels need.
    """
    labels = as_tensor(value if isinstance(value, Tensor) else _numeric_labels(value, name), name)
    description = f"{name} of shape {tuple(labels.shape)} and dtype {labels.dtype}".replace("torch.", "")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.is_complex():
        raise InputError(description, expected="one class index per row, shape (n,)", hint=_shape_hint(labels, name))
    if n is not None and len(labels) != n:
        raise InputError(description, expected=f"{n} labels, one per row", hint="pass one label per row")
    if labels.is_floating_point() and bool((labels != labels.round()).any()):
        many_values = 2 * len(labels.unique()) > len(labels)
        raise InputError(
            f"{description} with fractions",
            expected="whole numbers",
            hint="these look like real targets, which have no classes" if many_values else _numbering_hint(name),
        )
    outside = (labels < 0) | (labels >= (2**53 if n_classes is None else n_classes))
    if bool(outside.any()):
        upper_bound = "" if n_classes is None else f"..{n_classes - 1}"
        raise InputError(
            f"{description} with {int(outside.sum())} values outside 0{upper_bound} (the first is {labels[outside][0]:.15g})",
            expected=f"class indices 0{upper_bound or ', 1, 2, ...'}",
            hint=renumbering_hint(labels, name if name.isidentifier() else "y", n_classes),
        )
    return labels.to(torch.int64)


def renumbering_hint(labels: Tensor, name: str, n_classes: int | None) -> str:
    """Return the hint for whole-number labels (n,), some of which are outside 0..n_classes-1 (None: negative ones)."""
    distinct = labels.unique()
    smallest, largest = int(distinct[0]), int(distinct[-1])
    if smallest < 0:
        if distinct.tolist() == [-1, 1]:
            return f"pass ({name} + 1) // 2"
        others_fit = distinct[distinct >= 0].numel() > 1 and (n_classes is None or largest < n_classes)
        if others_fit and int((distinct < 0).sum()) == 1:  # -1 and -100 mark rows without a label
            return f"remove the rows without a label: keep the rows with {name} >= 0"
        return _numbering_hint(name)
    if smallest == 1 and largest == n_classes:
        return f"pass {name} - 1"
    if n_classes is not None and len(distinct) > n_classes:
        return f"use a model with {len(distinct)} outputs, or remove the rows of some classes"
    return _numbering_hint(name)


def _numeric_labels(value: ArrayLike, name: str) -> ArrayLike:
    """Return ``value`` as an array of numbers; raise an InputError if it holds text, other objects, or missing labels."""
    try:
        array = np.asarray(value)
    except ValueError:  # ragged: as_tensor says so
        return value
    if array.dtype == object and all(isinstance(label, Integral) for label in array.flat):
        return array.astype(np.int64)  # pandas' nullable integers
    if array.dtype.kind in "biufc":
        return array
    missing = any(label is None or (isinstance(label, float) and math.isnan(label)) for label in array.flat)
    raise InputError(
        f"{name} of shape {array.shape} and dtype {array.dtype}" + (" with missing labels" if missing else ""),
        expected="class indices 0, 1, 2, ...",
        hint="remove the rows without a label" if missing else _numbering_hint(name),
    )


def _numbering_hint(name: str) -> str:
    return f"number the classes from 0, of all rows together: numpy.unique({name}, return_inverse=True)[1]"


def _shape_hint(labels: Tensor, name: str) -> str:
    """Return the hint for labels that are not (n,) or (n, 1)."""
    if labels.ndim == 2 and labels.numel() and not labels.is_complex():
        if labels.shape[0] == 1:
            return f"pass {name}[0]"
        if bool((labels.sum(1) == 1).all()) and bool(((labels == 0) | (labels == 1)).all()):
            return f"pass {name}.argmax(1), the class indices of these one-hot rows"
        if (
            labels.is_floating_point()
            and bool((labels >= 0).all())
            and torch.allclose(labels.sum(1), labels.new_ones(()))
        ):
            return f"pass {name}.argmax(1), the most probable class of each row"
    return "pass one class index per row"


def as_device(device: torch.device | str, name: str = "device") -> torch.device:
    """Return a device on which tensors can be created.

    Raises:
        InputError: not the name of a device, or one that this machine or this build of torch does not have.
    """
    try:
        result = torch.device(device)
        torch.empty(0, device=result)
    except Exception as error:  # RuntimeError, AssertionError or NotImplementedError, as the backend likes
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{name}={device!r} ({reason})",
            expected="a device that this machine and this build of torch have",
            hint=f'pass {name}="cpu", or None for the device of the model',
        ) from error
    if result.type == "meta":
        raise InputError(
            f"{name}={device!r}, on which tensors have no values",
            expected="a device that computes",
            hint=f'pass {name}="cpu"',
        )
    return result


def as_square_kernel(value: ArrayLike, name: str = "kernel", *, tolerance: float = 1e-6) -> Tensor:
    """Return a kernel matrix as a symmetric float64 tensor of shape (n, n).

    Asymmetry up to ``tolerance`` times the largest entry (rounding of a float32 kernel) is averaged away.

    Raises:
        InputError: not square, empty, or not finite.
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


def as_number(
    value: object, name: str, *, minimum: float = 0.0, maximum: float = math.inf, exclusive: bool = False
) -> float:
    """Return one finite number in [minimum, maximum], or in (minimum, maximum] if ``exclusive``.

    Raises:
        InputError: not a number (True and False are not), not finite, or out of range.
    """
    scalar = _scalar(value)
    number = math.nan if scalar is None else float(scalar)
    if not math.isfinite(number) or not minimum <= number <= maximum or (exclusive and number == minimum):
        bounds = f"{'>' if exclusive else '>='} {minimum:g}" if minimum > -math.inf else ""
        bounds += f"{' and' if bounds else ''} <= {maximum:g}" if maximum < math.inf else ""
        raise InputError(
            f"{name}={value!r}", expected=f"a finite number {bounds}".rstrip(), hint=f"pass {name} in this range"
        )
    return number


def as_count(value: object, name: str, *, minimum: int = 1, maximum: int | None = None) -> int:
    """Return one whole number in [minimum, maximum]; None: no upper bound.

    Raises:
        InputError: not a whole number (True and False are not), or out of range.
    """
    scalar = _scalar(value)
    if not isinstance(scalar, int) or scalar < minimum or (maximum is not None and scalar > maximum):
        bounds = f">= {minimum}" if maximum is None else f"in {minimum}..{maximum}"
        raise InputError(f"{name}={value!r}", expected=f"a whole number {bounds}", hint=f"pass {name} in this range")
    return scalar


def _scalar(value: object) -> int | float | None:
    """Return ``value`` as a Python number, or None if it is not a number or is True or False."""
    if isinstance(value, Tensor | np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def seed_sequence(seed: int, names: Sequence[str]) -> dict[str, int]:
    """Derive one independent 63-bit seed for each name from one explicit seed.

    The same ``seed`` and position give the same numbers on every machine (NumPy's SeedSequence).
    """
    states = np.random.SeedSequence(as_count(seed, "seed", minimum=0)).generate_state(len(names), np.uint64)
    return {name: int(state >> np.uint64(1)) for name, state in zip(names, states, strict=True)}
