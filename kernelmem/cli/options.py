"""Options that several commands share, and the hints about defaults in their help."""

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
