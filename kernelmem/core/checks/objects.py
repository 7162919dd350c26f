"""Checks of arguments that are not numbers: names, choices, callables, models, devices, dtypes, paths, options."""

import inspect
import math
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import BuiltinFunctionType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from kernelmem.core.errors import InputError

T = TypeVar("T")
# A built-in function may be a loss or an activation, but none makes a model or takes a model or random generator.
NOT_FOR_BUILTINS = ("model", "rng", "width", "index", "indices")
LONGEST_PATH, LONGEST_NAME = 4095, 255  # bytes, on Linux


def describe(value: object, length: int = 80) -> str:
    """Describe a value in an error message: arrays by type and shape, everything else by its shortened ``repr``."""
    if isinstance(value, Tensor | np.ndarray):
        shape = "" if isinstance(value, Tensor) and value.is_nested else f" of shape {tuple(value.shape)} and"
        return f"{type(value).__name__}{shape} dtype {value.dtype}".replace("torch.", "")
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**40:
        return f"an integer of {int(math.log10(abs(value))) + 1} digits"
    if isinstance(value, nn.Module) or callable(value):
        return f"{getattr(value, '__name__', type(value).__name__)!r} of type {type(value).__name__}"
    text = repr(value).encode("ascii", "backslashreplace").decode() if isinstance(value, str) else repr(value)
    return text if len(text) <= length else f"{text[: length - 4]} ..."


def check_choice(value: object, name: str, choices: Sequence[str | None], *, hint: str = "") -> None:
    """Check that ``value`` is one of a few names, or None if None is among them.

    Raises:
        InputError: another value; the message lists the choices.
    """
    if (value is None or isinstance(value, str)) and value in choices:
        return
    names = ["None" if choice is None else f'"{choice}"' for choice in choices]
    expected = " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    raise InputError(f"{name}={describe(value)}", expected=expected, hint=hint or f"pass {name}={names[0]}")


def check_instance(value: object, name: str, cls: type[T] | tuple[type, ...], *, hint: str = "") -> None:
    """Check that ``value`` is an instance of ``cls``, such as the options of a function.

    Raises:
        InputError: an instance of another class, or the class itself.
    """
    if isinstance(value, cls):
        return
    names = " or ".join(c.__name__ for c in (cls if isinstance(cls, tuple) else (cls,)))
    raise InputError(
        f"{name}={describe(value)} of type {type(value).__name__}",
        expected=f"an instance of {names}",
        hint=hint or f"pass {name}={names.split(' or ')[0]}(...)",
    )


def as_text(value: object, name: str) -> str:
    """Return text that can be encoded, such as a name that is printed in a report.

    Raises:
        InputError: not a str, or with surrogate characters.
    """
    if isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value):
        return value
    raise InputError(f"{name}={describe(value)}", expected="text", hint=f'pass {name}="..."')


def as_pair(value: object, name: str, parts: tuple[str, str] = ("x", "y")) -> tuple[Any, Any]:
    """Return a tuple or list of two values.

    Raises:
        InputError: not a tuple or list, or of another length.
    """
    if isinstance(value, tuple | list) and len(value) == 2:
        return value[0], value[1]
    raise InputError(
        f"{name}={describe(value)}", expected=f"a pair ({', '.join(parts)})", hint=f"pass {name}=({', '.join(parts)})"
    )


def as_list(value: object, name: str) -> list[Any]:
    """Return the elements of an iterable: a list, tuple, array or generator.

    Raises:
        InputError: text, a mapping, a set, an array without axes, or nothing to iterate over.
    """
    no_order = isinstance(value, str | bytes | Mapping | Set)
    if isinstance(value, np.ndarray) or (
        isinstance(value, Tensor) and value.layout is torch.strided and not value.is_nested
    ):
        if value.ndim:
            return list(value)
    elif isinstance(value, Sequence | Iterator) and not no_order:
        return list(value)
    raise InputError(
        f"{name}={describe(value)}", expected="a list of values", hint=f"pass {name}=[...], one element per value"
    )


def as_names(value: object, name: str) -> list[str] | None:
    """Return several names as a list; None stays None.

    Raises:
        InputError: one string, nothing to iterate over, or elements that are not strings.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        elements: list[Any] = list(value) if isinstance(value, Set) else as_list(value, name)
        if all(isinstance(element, str) for element in elements):
            return elements
    raise InputError(
        f"{name}={describe(value)}",
        expected="a list of names, or None",
        hint=f'pass {name}=["{value}"]' if isinstance(value, str) else f"pass {name}=[...], names as text",
    )


def check_callable(
    value: object, name: str, arguments: Sequence[str], *, modules: bool = False, types: bool = False
) -> None:
    """Check that ``value`` can be called with the given positional arguments.

    The signature is compared where Python knows it, so that a function of another number of arguments is refused before
    anything is computed. Modules and types are refused unless ``modules`` or ``types`` is true.

    Raises:
        InputError: not callable, a module, or with another number of arguments.
    """
    first = arguments[0] if arguments else "model"  # a function without arguments makes something
    try:
        called = value.forward if isinstance(value, nn.Module) and modules else value
        bind = inspect.signature(called).bind if callable(called) else None
    except (TypeError, ValueError):  # a built-in function or type without a signature
        bind = None
        if not isinstance(value, type) and first not in NOT_FOR_BUILTINS:
            return
    try:
        refused = isinstance(value, BuiltinFunctionType) and first in NOT_FOR_BUILTINS
        refused |= (isinstance(value, nn.Module) and not modules) or (isinstance(value, type) and not types)
        if bind is not None and not refused:
            bind(*arguments)
            return
    except TypeError:  # raised by bind: other arguments
        pass
    raise InputError(
        f"{name}={describe(value)}",
        expected=f"a function of ({', '.join(arguments)})",
        hint=f"pass {name}={' '.join(['lambda', ', '.join(arguments)]).rstrip()}: ...",
    )


def check_model(model: object, name: str = "model") -> None:
    """Check that ``model`` is a torch module.

    Raises:
        InputError: another type, also the class of a module.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{name}={describe(model)} of type {type(model).__name__}",
            expected="a torch.nn.Module",
            hint="wrap your function in a torch.nn.Module" if callable(model) else "pass the trained module",
        )


def as_float_dtype(value: object, name: str = "dtype") -> torch.dtype:
    """Return torch.float32 or torch.float64.

    Raises:
        InputError: another value.
    """
    if isinstance(value, torch.dtype) and value in (torch.float32, torch.float64):
        return value
    raise InputError(
        f"{name}={describe(value)}".replace("torch.", ""),
        expected="torch.float32 or torch.float64",
        hint=f"pass {name}=torch.float64",
    )


def as_device(value: object, name: str = "device") -> torch.device:
    """Return a torch device on which tensors can be made.

    Raises:
        InputError: not the name of a device, or a device that this machine or this build of torch does not have.
    """
    if isinstance(value, str | torch.device):
        try:
            device = torch.device(value)
            if device.type != "meta":
                torch.zeros(1, device=device).item()
                return device
        except (RuntimeError, AssertionError):  # raised by torch: unknown, or not available here
            pass
    accelerators = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    accelerators += ["mps"] if torch.backends.mps.is_available() else []
    raise InputError(
        f"{name}={describe(value)}",
        expected=f"a device of this machine: {', '.join(['cpu', *accelerators])}",
        hint='pass "cpu"' if not accelerators else f'pass "{accelerators[0]}"',
    )


def as_path(value: object, name: str, *, any_bytes: bool = False) -> Path:
    """Return the path of a file or directory; with ``any_bytes`` its name need not be UTF-8 (a file that is only read).

    Raises:
        InputError: not text or a Path, empty, too long, with a NUL character, or not encodable in UTF-8.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if isinstance(text, str) and text and "\0" not in text:
        try:
            encoded = os.fsencode(text) if any_bytes else text.encode()
        except UnicodeEncodeError:  # a name that is not UTF-8 cannot be printed or stored in a report
            encoded = b""
        if encoded and len(encoded) <= LONGEST_PATH and all(len(p) <= LONGEST_NAME for p in encoded.split(b"/")):
            return Path(text)
    raise InputError(
        f"{name}={describe(value)}",
        expected="the path of a file or directory, as text or a Path, in UTF-8",
        hint=f'pass {name}="results"',
    )
