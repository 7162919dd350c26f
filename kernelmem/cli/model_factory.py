"""Models that the user names on the command line, as ``package.module:factory``. This runs the user's code."""

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from torch import nn

from kernelmem.core.errors import InputError

__all__ = ["build_model"]


def build_model(name: str, **offered: Any) -> nn.Module:
    """Import ``package.module:factory`` (the working directory is searched too) and call it.

    The factory is called with those of the ``offered`` keyword arguments that its signature names (none needed).

    Raises:
        InputError: the name has no such form, the module or attribute is not there or fails, so does the factory, or it
            gives no module.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise InputError(f"--model {name}", expected="package.module:factory", hint="e.g. --model mynets:make_model")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit) as error:  # the user's code may raise anything, SyntaxError among them
        raise InputError(
            f"--model {name} ({type(error).__name__}: {error})",
            expected="an importable module with that attribute",
            hint="run from the directory that holds the module, or install it",
        ) from error
    try:
        named = inspect.signature(factory).parameters
        model = factory(**{key: value for key, value in offered.items() if key in named})
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InputError(
            f"--model {name}, which raised {type(error).__name__}: {error}",
            expected=f"a factory that can be called with no arguments or with {', '.join(offered)}",
            hint="give its other parameters default values",
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"--model {name}, which gave a {type(model).__name__}",
            expected="a torch.nn.Module",
            hint="return one",
        )
    return model
