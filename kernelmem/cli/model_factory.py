"""Models named on the command line as ``package.module:factory``. This executes the user's code."""

import importlib
import inspect
import sys
from pathlib import Path

from torch import nn

from kernelmem.core.errors import InputError


def build_model(name: str, **arguments: object) -> nn.Module:
    """Call the factory that ``--model`` names; see :func:`call_factory`.

    Raises:
        InputError: as for :func:`call_factory`, or the factory does not return a module.
    """
    model = call_factory(name, "--model", **arguments)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"--model {name}, which returned a {type(model).__name__}",
            expected="a torch.nn.Module",
            hint="return the network from the factory",
        )
    return model


def call_factory(name: str, option: str, **arguments: object) -> object:
    """Import ``package.module:factory`` and call it; the working directory is searched last, so that it hides no package.

    The factory receives only those ``arguments`` that are parameters of its signature. ``option`` is that of the command line
    that names it.

    Raises:
        InputError: the name does not have this form, the import fails, the attribute is missing, or the factory raises.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise InputError(
            f"{option} {name}", expected="package.module:factory", hint=f"pass for example {option} mynets:make_model"
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
        factory = getattr(module, attribute, None)
        if factory is None:
            raise AttributeError(f"no attribute {attribute} in {getattr(module, '__file__', module_name)}")
    except (Exception, SystemExit) as error:  # the user's code may raise anything, SyntaxError among them
        raise InputError(
            f"{option} {name} ({type(error).__name__}: {error})",
            expected="an importable module with that attribute",
            hint="run from the directory of the module, or install it; a module of another name if that one is installed",
        ) from error
    try:
        accepted_parameters = inspect.signature(factory).parameters
        return factory(**{argument: value for argument, value in arguments.items() if argument in accepted_parameters})
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        accepted = f"no arguments or with {', '.join(arguments)}" if arguments else "no arguments"
        raise InputError(
            f"{option} {name}, which raised {type(error).__name__}: {error}",
            expected=f"a factory that can be called with {accepted}",
            hint="give its other parameters default values",
        ) from error
