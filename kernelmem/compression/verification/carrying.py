"""Pickle a predictor for another process, and measure the values that it carries."""

import importlib
import io
import os
import pickle
import pickletools
import re
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernelmem.core import InputError

LONGEST_NAME = 64  # characters of names of classes, functions, attributes and modules, which are not counted
LONGEST_MESSAGE = 256  # characters of texts in the code, such as error messages, which are not counted
CLASS_NUMBER = re.compile("[0-9a-f]{32}")  # which cloudpickle gives to classes
FREE_REFERENCES = 256  # to values that occurred before, such as names
STRUCTURE = re.compile(  # operations of a pickle that hold no value
    "PROTO|FRAME|STOP|MARK|MEMOIZE|(LONG_)?BINPUT|(STACK_)?GLOBAL|REDUCE|BUILD|NEWOBJ(_EX)?|POP(_MARK)?|DUP|EMPTY_.*|TUPLE.?"
    "|LIST|DICT|FROZENSET|APPENDS?|SETITEMS?|ADDITEMS|NONE"
)


def _import_cloudpickle() -> ModuleType:
    """Return cloudpickle, a dependency of scikit-learn's joblib, which contained a copy of it before version 1.6."""
    try:
        return importlib.import_module("cloudpickle")
    except ImportError:
        return importlib.import_module("joblib.externals.cloudpickle")


cloudpickle = _import_cloudpickle()


def pickled(predictor: object) -> tuple[bytes, int]:
    """Return a predictor as bytes that another process can load, and the bits of the values that it carries.

    Functions and classes of the script, the notebook and the user's own modules are stored with the values that they
    refer to; those of installed packages by name. Counted are arrays and tensors with all their bytes, and numbers, texts
    and other values with their bytes in the pickle; not counted are code, names and documentation.

    Raises:
        InputError: it cannot be pickled.
    """
    errors: list[Exception] = []
    for modules in (_own_modules(), []):  # some modules hold values that cannot be pickled: then by name
        with _by_value(modules):
            try:
                data = cloudpickle.dumps(predictor)
                pickle.loads(data)
                return data, _carried_bits(predictor)
            except Exception as error:  # of any type: user classes define their pickling
                errors.append(error)
    raise InputError(
        f"a predictor that cannot be pickled ({type(errors[-1]).__name__}: {str(errors[-1])[:200]})",
        expected="a function or object that another process can load",
        hint="open files, create locks and generators inside the call",
    )


def _carried_bits(predictor: object) -> int:
    buffer = io.BytesIO()
    pickler = _ValuePickler(buffer)
    pickler.dump(predictor)
    operations = list(pickletools.genops(buffer.getvalue()))
    positions = [position or 0 for _, _, position in operations] + [buffer.tell()]
    n_bytes, n_references = 0, 0
    for k, (operation, argument, _) in enumerate(operations):
        is_name = isinstance(argument, str) and len(argument) <= LONGEST_NAME and _is_name(argument)
        is_documentation = isinstance(argument, str) and argument in pickler.documentation
        is_reference = operation.name in ("BINGET", "LONG_BINGET")
        n_references += is_reference
        if not (STRUCTURE.fullmatch(operation.name) or is_name or is_documentation or is_reference):
            n_bytes += positions[k + 1] - positions[k]
    n_bytes += 2 * max(0, n_references - FREE_REFERENCES)
    return 8 * (n_bytes + pickler.array_bytes)


def _is_name(text: str) -> bool:
    if CLASS_NUMBER.fullmatch(text):
        return True
    return all(part.isidentifier() for part in text.replace("<", "").replace(">", "").split(".")) or not text


class _ValuePickler(cloudpickle.Pickler):
    """Pickle with arrays replaced by their size and code by its constants."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=4)
        self.array_bytes = 0
        self.documentation: set[str] = set()
        self._counted: dict[int, object] = {}  # storages by address, kept alive

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor) and obj.layout is torch.strided and not obj.is_nested:
            obj = obj.detach()
            storage = obj.untyped_storage()
            self._count(storage.data_ptr(), obj, storage.nbytes())
            return tuple, ()
        if isinstance(obj, np.ndarray) and obj.dtype != object:
            self._count(id(obj), obj, obj.nbytes)
            return tuple, ()
        if isinstance(obj, CodeType):
            constants = [
                value for value in obj.co_consts if not (isinstance(value, str) and len(value) <= LONGEST_MESSAGE)
            ]
            if constants and constants[0] == (obj.co_consts or (None,))[0] and isinstance(constants[0], str):
                del constants[0]  # the documentation of a function
            return list, (constants,)
        if isinstance(obj, FunctionType | type) and isinstance(obj.__doc__, str):
            self.documentation.add(obj.__doc__)
        if isinstance(obj, FunctionType):
            self.documentation.add(obj.__code__.co_filename)
        return super().reducer_override(obj)

    def _count(self, address: int, obj: object, n_bytes: int) -> None:
        if address not in self._counted:
            self._counted[address] = obj
            self.array_bytes += n_bytes


def _own_modules() -> list[ModuleType]:
    """Return the loaded modules that belong neither to Python nor to an installed package nor to kernelmem."""
    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    installed = tuple({folder + os.sep for path in folders for folder in (path, os.path.realpath(path))})
    modules = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(module, ModuleType) or not isinstance(file, str) or module.__name__ != name:
            continue
        if name.split(".")[0] in ("kernelmem", "__main__") or file.startswith(installed):
            continue
        if not os.path.realpath(file).startswith(installed):
            modules.append(module)
    return modules


@contextmanager
def _by_value(modules: list[ModuleType]) -> Iterator[None]:
    """Have cloudpickle store functions and classes of ``modules`` by value."""
    already = cloudpickle.list_registry_pickle_by_value()
    modules = [module for module in modules if module.__name__ not in already]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)
