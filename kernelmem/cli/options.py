"""Options that several commands share, and the hints about defaults in their help."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    import torch

DEVICE = Annotated[str, tyro.conf.arg(metavar="cpu|cuda|cuda:1|...")]


def default_hint(default: str) -> str:
    """Return the text that replaces "(default: None)" in the help of an option."""
    return f"(default: {default})"


def as_device(name: str) -> "torch.device":
    """Return the device, after a check that tensors can be allocated there.

    Raises:
        InputError: torch does not know the device, or cannot use it here.
    """
    import torch

    from kernelmem.core.errors import InputError

    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # meta tensors have no values
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"--device {name} ({str(error).splitlines()[0]})",
            expected="a device that torch can use here",
            hint="pass --device cpu",
        ) from error
    return device


def check_report_directory(directory: Path, *, overwrite: bool) -> None:
    """Check that a report can be written to ``--out``, before long work.

    Raises:
        InputError: it holds a report and ``overwrite`` is False, or no file can be written there.
    """
    from kernelmem.auditing.schema import check_no_report
    from kernelmem.core.errors import InputError

    if not overwrite and any((directory / name).exists() for name in ("audit.json", "audit.html")):
        raise InputError(
            f"--out {directory}, which holds an older report",
            expected="a directory without a report",
            hint="pass --overwrite to replace it, or another directory",
        )
    check_no_report(directory, overwrite=overwrite)


def command_line(command: object, name: str, options: Sequence[str], *, flags: Sequence[str] = ()) -> str:
    """Return the command line that runs ``command`` again, with file names instead of paths.

    ``options`` and ``flags`` are the attributes that may be part of it; those with their default value are left out, except
    for the seed.
    """
    words = [name]
    for option in options:
        value, default = getattr(command, option), getattr(type(command), option)
        if value != default or option == "seed":
            word = _shell_word(value.name if isinstance(value, Path) else str(value))
            words += ["--" + option.replace("_", "-"), word]
    words += [f"--{flag.replace('_', '-')}" for flag in flags if getattr(command, flag)]
    return " ".join(words)


def _shell_word(text: str) -> str:
    """Return ``text`` quoted for the shell; characters that are not printable are written as the escapes of ``$'...'``."""
    from kernelmem.core.errors import printable

    if printable(text) == text:
        return shlex.quote(text)
    quoted = "".join(
        chr(byte) if chr(byte).isascii() and chr(byte).isprintable() and byte not in b"'\\" else f"\\x{byte:02x}"
        for byte in os.fsencode(text)
    )
    return f"$'{quoted}'"
