"""The exception tree. Every error states what was received, what was expected, and how to fix it."""


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
        super().__init__(f"Got {given}; expected {expected}. Hint: {hint}")
        self.given = given
        self.expected = expected
        self.hint = hint

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
