"""Options that many functions share: memory limits and progress."""

import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from kernelmem.core.checks import as_number, check_callable, describe
from kernelmem.core.errors import InputError

if TYPE_CHECKING:
    import tqdm

MEMORY = "4GiB"  # default limit of what a call may allocate
MAX_BYTES = 2**60  # of 64-bit arithmetic

Progress: TypeAlias = Callable[[int, int], object] | bool | None
"""Type of ``progress=``: a function of (done, total); True for a bar, False for silence; None for a bar in terminals
and notebooks only."""

BAR_DELAY = 1.0  # seconds before a bar appears, so that short work shows none


def as_bytes(memory: int | str) -> int:
    """Return a memory size in bytes from a number or from text such as "4GiB" or "500MB".

    Raises:
        InputError: neither a number nor such a text, or not positive and finite.

    >>> as_bytes("1.5KiB")
    1536
    """
    units = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
    number: object = memory
    if isinstance(memory, str):
        text = memory.strip().upper()
        digits = text.rstrip("KMGTIB ")
        try:
            number = float(digits) * units[text[len(digits) :].strip() or "B"]
        except (ValueError, KeyError):
            number = None
    try:
        return min(int(as_number(number, "memory", minimum=1.0)), MAX_BYTES)
    except InputError as error:
        raise InputError(
            f"memory={describe(memory)}", expected='a positive number of bytes, or "4GiB"', hint='pass memory="2GiB"'
        ) from error


def as_progress(progress: Progress, label: str, unit: str = "step") -> Callable[[int, int], object]:
    """Return the function to call with (done, total): the user's own, a labelled bar, or one that does nothing.

    Args:
        progress: function, True, False or None, as the user passed it.
        label: name of the bar.
        unit: name of the counted unit, in the singular.

    Raises:
        InputError: ``progress`` is another value, or a function that does not take two arguments.
    """
    if progress is False:
        return _ignore_progress
    if progress is not None and progress is not True:
        if not callable(progress):
            raise InputError(
                f"progress={describe(progress)}",
                expected="True, False, None or a function of (done, total)",
                hint="pass progress=True for a bar",
            )
        check_callable(progress, "progress", ("done", "total"))
        return progress
    return _ProgressBar(label, unit, always=progress is True)


def _ignore_progress(done: int, total: int) -> None:
    pass


def _tqdm() -> "type[tqdm.tqdm]":
    """Return the progress bar of tqdm: a widget in notebooks, and a bar of text there without ipywidgets."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")  # tqdm's advice to install ipywidgets
        from tqdm.auto import tqdm as bar_class  # here, because notebooks make it import ipywidgets

    return bar_class


class _ProgressBar:
    """A tqdm progress bar that opens at the first call and closes when all units are done."""

    def __init__(self, label: str, unit: str, *, always: bool) -> None:
        self.label, self.unit, self.always = label, unit, always
        self.bar = None
        self.last_refresh = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` units are done."""
        if self.bar is None:
            bar_class = _tqdm()
            disable = False if self.always else None  # None: disabled unless the output is a terminal (or a notebook)
            delay = 0.0 if self.always else BAR_DELAY
            self.bar = bar_class(
                total=total, desc=self.label, unit=self.unit, disable=disable, delay=delay, leave=False
            )
        self.bar.total = total
        self.bar.update(done - self.bar.n)
        self.last_refresh = time.monotonic()
        if done >= total:
            self.bar.close()
            self.bar = None

    def refresh(self, done: int, total: int) -> None:
        """Show ``done`` units, possibly unfinished ones, and the elapsed time; at most once per second."""
        if self.bar is not None and time.monotonic() - self.last_refresh >= BAR_DELAY:
            self(min(done, total - 1), total)
            self.bar.refresh()


def refresh_progress(progress: Callable[[int, int], object], done: int, total: int) -> None:
    """Show on a bar that work goes on; a user's function is called for finished units only."""
    if isinstance(progress, _ProgressBar):
        progress.refresh(done, total)
