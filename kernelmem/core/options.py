"""Amounts of memory as users write them."""

from kernelmem.core.errors import InputError

__all__ = ["as_bytes"]


def as_bytes(memory: int | str) -> int:
    """Read "4GiB", "500MB" or a number as bytes.

    >>> as_bytes("1.5KiB")
    1536
    """
    units = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
    if isinstance(memory, str):
        text = memory.strip().upper()
        digits = text.rstrip("KMGTIB ")
        try:
            value = float(digits) * units[text[len(digits) :].strip() or "B"]
        except (ValueError, KeyError):
            value = -1.0
    else:
        value = float(memory)
    if not 0 < value < float("inf"):
        raise InputError(f"memory={memory!r}", expected='a positive number of bytes, or "4GiB"', do='pass "2GiB"')
    return int(value)
