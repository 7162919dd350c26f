"""Calls of public functions with one or two arguments replaced, and what may not happen in them.

A call may return, or raise an error of kernelmem. It may not raise another error, return NaN, warn, hang, or change its
arguments, a global setting or a random state.
"""

import contextlib
import dataclasses
import math
import os
import random
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

import kernelmem as km
from kernelmem.testing.strategies import Junk

SECONDS = 10  # a call that takes longer hangs: valid calls take milliseconds


class Hang(BaseException):
    """Raised in a call that has not ended after SECONDS; not an Exception, so that nothing catches it."""


@dataclass(frozen=True)
class Call:
    """A public function and a function that makes valid arguments for it.

    Attributes:
        function: what is called, with keyword arguments.
        arguments: makes valid arguments, which are checked for changes after the call.
        changes: names of the arguments that the function changes by design, such as a model that is trained.
        undefined: names of fields of the result that are documented to be NaN where a number is undefined.
        warns: categories of warnings that are documented.
        examples: share of the number of calls; smaller for slow functions.
        checked_by_scikit_learn: names of the arguments that scikit-learn's own validation checks, with its errors.
    """

    function: Callable[..., object]
    arguments: Callable[[], dict[str, object]]
    changes: frozenset[str] = frozenset()
    undefined: frozenset[str] = frozenset()
    warns: tuple[type[Warning], ...] = ()
    examples: float = 1.0
    checked_by_scikit_learn: frozenset[str] = frozenset()


def targets_of(arguments: Mapping[str, object]) -> list[str]:
    """Names of the arguments, and of the fields of arguments that are options, as "options.field"."""
    names = list(arguments)
    for name, value in arguments.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type | km.Run) and not hasattr(value, "to_frame"):
            names += [f"{name}.{f.name}" for f in dataclasses.fields(value) if f.init]
    return names


def run_call(name: str, call: Call, replaced: Mapping[str, Junk]) -> None:
    """Call the function with some arguments replaced.

    Raises:
        AssertionError: the call did what it may not do; the message names function, arguments and values.
    """
    description = f"{name} with {', '.join(f'{target} = {junk!r}' for target, junk in replaced.items())}"
    arguments, values = call.arguments(), {target: junk.make() for target, junk in replaced.items()}
    unchanged = {key: value for key, value in arguments.items() if key not in call.changes}
    before = _snapshot([unchanged, {key: value for key, value in values.items() if key not in call.changes}])
    state, result = _global_state(), None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        filters = list(warnings.filters)
        try:
            with _deadline():
                for target in sorted(values, key=lambda target: "." in target):
                    head, _, option = target.partition(".")
                    if not option:
                        arguments[head] = values[target]
                    elif head not in values:
                        arguments[head] = dataclasses.replace(arguments[head], **{option: values[target]})
                result = call.function(**arguments)
        except (km.KernelmemError, NotFittedError):
            pass
        except Hang:
            raise AssertionError(f"{description}: not finished after {SECONDS} s") from None
        except Exception as error:
            if call.checked_by_scikit_learn & set(replaced) and _is_raised_by_scikit_learn(error):
                return
            raise AssertionError(f"{description}: {type(error).__name__}: {str(error)[:300]}") from error
        assert warnings.filters == filters, f"{description}: the warning filters were changed"
    leaked = [str(w.message)[:200] for w in caught if not issubclass(w.category, call.warns)]
    assert not leaked, f"{description}: warned {leaked}"
    undefined = _first_undefined(result, call.undefined)
    assert undefined is None, f"{description}: returned {undefined}"
    assert _global_state() == state, f"{description}: changed a global setting or random state"
    changed = [place for place, old in before.items() if not old()]
    assert not changed, f"{description}: changed an argument"


def _is_raised_by_scikit_learn(error: Exception) -> bool:
    """True for an error of the validation by scikit-learn, which kernelmem, or this test, called."""
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    last = max(
        i for i, file in enumerate(frames) if "sklearn" not in file and ("kernelmem" in file or "border" in file)
    )
    is_validation = len(frames) > last + 1 and "sklearn" in frames[last + 1]
    return is_validation and isinstance(error, ValueError | TypeError | OverflowError)


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise Hang

    # processor time, so that another process cannot make a call look slow; waiting is found by the clock
    timers = ((signal.SIGPROF, signal.ITIMER_PROF, SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, 6 * SECONDS))
    previous = [signal.signal(number, stop) for number, _, _ in timers]
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, previous, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def _global_state() -> tuple[object, ...]:
    """All settings and random states that a library could change."""
    keys, position, *gauss = np.random.get_state()[1:]  # noqa: NPY002  the global state is what is checked
    return (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_anomaly_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_device(),
        torch.get_rng_state().numpy().tobytes(),
        keys.tobytes(),
        position,
        *gauss,
        random.getstate(),
        tuple(np.geterr().items()),
        os.getcwd(),  # noqa: PTH109
    )


def _snapshot(value: object) -> dict[int, Callable[[], bool]]:
    """For every tensor, array and module inside: a function that is True as long as it is as it was."""
    checks: dict[int, Callable[[], bool]] = {}
    pending, seen = [value], set()
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, nn.Module):
            modes = [(module, module.training) for module in item.modules()]
            checks[id(item)] = lambda modes=modes: all(module.training == mode for module, mode in modes)
            pending += [*item.parameters(), *item.buffers()]
        elif isinstance(item, Tensor):
            checks[id(item)] = _tensor_check(item)
        elif isinstance(item, np.ndarray):
            content, writable = item.copy(), item.flags.writeable
            checks[id(item)] = lambda a=item, b=content, w=writable: (
                a.tobytes() == b.tobytes() and a.flags.writeable is w
            )
        elif isinstance(item, Mapping):
            keys = list(item)
            checks[id(item)] = lambda item=item, keys=keys: list(item) == keys
            pending += list(item.values())
        elif isinstance(item, list | tuple):
            checks[id(item)] = lambda item=item, old=list(item): all(a is b for a, b in zip(item, old, strict=True))
            pending += list(item)
        elif dataclasses.is_dataclass(item) and not isinstance(item, type | km.Run):
            pending += [getattr(item, f.name, None) for f in dataclasses.fields(item)]
    return checks


def _tensor_check(tensor: Tensor) -> Callable[[], bool]:
    if isinstance(tensor, nn.parameter.UninitializedTensorMixin):
        return lambda: isinstance(tensor, nn.parameter.UninitializedTensorMixin)
    version, requires_grad, gradient = tensor._version, tensor.requires_grad, tensor.grad
    plain = (
        tensor.layout is torch.strided and tensor.device.type == "cpu" and not (tensor.is_quantized or tensor.is_nested)
    )
    content = tensor.detach().clone() if plain else None

    def is_unchanged() -> bool:
        same = content is None or torch.allclose(tensor.detach(), content, rtol=0, atol=0, equal_nan=True)
        return same and (version, requires_grad) == (tensor._version, tensor.requires_grad) and tensor.grad is gradient

    return is_unchanged


def _first_undefined(value: object, allowed: frozenset[str], place: str = "") -> str | None:
    """Place and value of the first NaN inside a result, or None."""
    if isinstance(value, float | np.floating):
        return f"{place} = {value}" if math.isnan(value) else None
    if isinstance(value, Tensor):
        value = value.detach()
        is_number = value.device.type == "cpu" and (value.is_floating_point() or value.is_complex())
        is_number = is_number and value.layout is torch.strided and not value.is_nested
        return f"{place} with NaN" if is_number and bool(value.isnan().any()) else None
    if isinstance(value, np.ndarray):
        return f"{place} with NaN" if value.dtype.kind in "fc" and bool(np.isnan(value).any()) else None
    if scipy.sparse.issparse(value) or isinstance(value, type | nn.Module):
        return None
    parts: list[tuple[str, object]] = []
    if dataclasses.is_dataclass(value):
        names = [f.name for f in dataclasses.fields(value) if not f.name.startswith("_")]
        parts = [(name, getattr(value, name, None)) for name in names]
    elif isinstance(value, Mapping):
        parts = [(str(key), part) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(str(i), part) for i, part in enumerate(value)]
    for key, part in parts:
        is_endless = place.count(".") > 20  # a list that contains itself
        found = None if key in allowed or is_endless else _first_undefined(part, allowed, f"{place}.{key}")
        if found is not None:
            return found
    return None
