"""The exception tree. Every error states what was received, what was expected, and how to fix it."""

import re

# Control characters except newline and tab, marks that reverse the order of text on the screen, lone surrogates
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return ``text`` with escapes for characters that cannot be written as UTF-8 or that alter how a terminal or page shows it.

    They come from names of files and models: bytes that are not UTF-8, terminal controls, marks that reverse the order of
    text.

    >>> printable("a\udcff.npz"), printable("\u202egnp.exe")
    ('a\\xff.npz', '\\u202egnp.exe')
    """
    return _UNPRINTABLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class KernelmemError(Exception):
    """Base class of the errors that kernelmem raises on purpose.

    The message has three parts, so that no error can be raised without a hint::

        Got labels y_train with 3 values outside 0..9; expected integers in 0..9. Hint: ...

    Attributes:
        given: description of the value that the function received.
        expected: description of the values that it accepts.
        hint: suggestion of how to fix the problem.
    """

    def __init__(self, given: str, *, expected: str, hint: str) -> None:
        self.given, self.expected, self.hint = printable(given), printable(expected), printable(hint)
        super().__init__(f"Got {self.given}; expected {self.expected}. Hint: {self.hint}")

    def __reduce__(self):  # the default pickling loses keyword-only arguments
        return (_rebuild, (type(self), self.given, self.expected, self.hint))


def _rebuild(cls: type[KernelmemError], given: str, expected: str, hint: str) -> KernelmemError:
    return cls(given, expected=expected, hint=hint)


class InputError(KernelmemError, ValueError):
    """An argument, array or file whose content the function cannot use."""


class UnsupportedModelError(KernelmemError, TypeError):
    """A model that cannot be analyzed as it is: BatchNorm in training mode, active dropout, wrong output shape."""


class VerificationError(KernelmemError, ArithmeticError):
    """A fast result that differs from the slow reference on the rows where both were computed."""


class NumericalError(KernelmemError, ArithmeticError):
    """A computation that cannot be trusted: NaN, asymmetric or indefinite kernel, singular system."""


class FileCorruptError(KernelmemError, OSError):
    """A file that is truncated, was altered, or has another format than expected."""


class TaskError(KernelmemError, RuntimeError):
    """A task whose workers died, were lost or exceeded the time limit in every attempt; the results of other tasks are kept."""
