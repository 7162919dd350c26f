"""The exception tree: every error says what was given, what was expected and what to do."""

__all__ = [
    "FileCorruptError",
    "InputError",
    "KernelmemError",
    "NumericalError",
    "UnsupportedModelError",
    "VerificationError",
]


class KernelmemError(Exception):
    """Root of all errors that kernelmem raises on purpose.

    The message is built from three parts, so that no error can be raised without saying what to do::

        given: labels y_train with 3 values outside 0..9; expected: integers in 0..9; do: ...
    """

    def __init__(self, given: str, *, expected: str, do: str) -> None:
        super().__init__(f"given: {given}; expected: {expected}; do: {do}")
        self.given = given
        self.expected = expected
        self.do = do

    def __reduce__(self):  # keyword-only arguments do not survive the default pickling
        return (_rebuild, (type(self), self.given, self.expected, self.do))


def _rebuild(cls: type[KernelmemError], given: str, expected: str, do: str) -> KernelmemError:
    return cls(given, expected=expected, do=do)


class InputError(KernelmemError, ValueError):
    """An argument, array or file whose content does not fit what the function computes."""


class UnsupportedModelError(KernelmemError, TypeError):
    """A model that cannot be analyzed as it is (train-mode BatchNorm, active dropout, wrong output shape)."""


class VerificationError(KernelmemError, ArithmeticError):
    """A fast result that differs from the slow definition on the rows where both were computed."""


class NumericalError(KernelmemError, ArithmeticError):
    """A computation that cannot be trusted: NaN, asymmetric or indefinite kernel, singular system."""


class FileCorruptError(KernelmemError, OSError):
    """A file that is not what its name says: truncated, altered, wrong format."""
