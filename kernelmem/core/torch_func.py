"""The functions of torch.func that kernelmem uses. No other file imports torch.func, so a change there is handled here."""

from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.func import functional_call, jacrev, jvp, vjp, vmap

__all__ = ["functional_call", "is_transformed", "jacrev", "jvp", "vjp", "vmap"]


def is_transformed(tensor: Tensor) -> bool:
    """Return True if ``tensor`` is wrapped by torch.func: inside vmap, grad or jvp."""
    return _functorch.is_functorch_wrapped_tensor(tensor)
