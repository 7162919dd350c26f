"""Hypothesis strategies of unusual and invalid arguments, one for each kind of argument.

A function with checked arguments either accepts such a value or raises its own error; it never returns NaN, never ends
in an error of another library, and never changes the value::

    @given(junk("kernel"), st.sampled_from(["kernel", "y"]))
    def test_my_function_refuses_junk(value, name):
        with contextlib.suppress(km.KernelmemError):
            my_function(**{**VALID, name: value.make()})
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from kernelmem.testing.strategies.junk_arrays import ARRAYS, Junk, Values, arrays


def junk(*kinds: str) -> st.SearchStrategy[Junk]:
    """Draw an unusual or invalid value of one of the kinds, in equal shares; without kinds, of all of them.

    ``KINDS`` lists the kinds. The kind "array" also draws arrays of random shape, dtype and content. Raises KeyError for
    an unknown kind.
    """
    strategies = {kind: st.sampled_from(values) for kind, values in KINDS.items()}
    strategies["array"] |= arrays()
    return st.one_of([strategies[kind] for kind in kinds or strategies])


class _BrokenModule(nn.Module):
    """A module whose forward pass returns None."""

    def forward(self, x: Tensor) -> None:
        return None


class _HugeNumber:
    """An object that converts to a float but is not a number."""

    def __float__(self) -> float:
        return 1.0


NUMBERS: Values = {
    "None": lambda: None,
    "True": lambda: True,
    "0": lambda: 0,
    "1": lambda: 1,
    "-1": lambda: -1,
    "0.5": lambda: 0.5,
    "2.0": lambda: 2.0,
    "-0.0": lambda: -0.0,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "-inf": lambda: -math.inf,
    "1e300": lambda: 1e300,
    "1e-300": lambda: 1e-300,
    "5e-324": lambda: 5e-324,
    "2**31": lambda: 2**31,
    "2**63": lambda: 2**63,
    "-2**63": lambda: -(2**63),
    "2**64": lambda: 2**64,
    "10**400": lambda: 10**400,
    "1j": lambda: 1j,
    "text 3": lambda: "3",
    "text nan": lambda: "nan",
    "object with __float__": _HugeNumber,
    "numpy int64": lambda: np.int64(2),
    "numpy float32": lambda: np.float32(0.5),
    "numpy nan": lambda: np.float64("nan"),
    "numpy bool": lambda: np.bool_(True),
    "tensor 0-d": lambda: torch.tensor(2),
    "tensor complex": lambda: torch.tensor(1j),
    "tensor (1,)": lambda: torch.ones(1),
    "tensor meta 0-d": lambda: torch.empty((), device="meta"),
    "datetime": lambda: np.datetime64("2020-01-01"),
}

TEXTS: Values = {
    "empty": lambda: "",
    "word": lambda: "junk",
    "trace": lambda: "trace",
    "full": lambda: "full",
    "upper case": lambda: "TRACE",
    "bytes": lambda: b"trace",
    "NUL": lambda: "a\0b",
    "surrogate": lambda: "\udc80",
    "right-to-left override": lambda: "\u202eevil",
    "newline": lambda: "a\nb",
    "long": lambda: "x" * 10_000,
    "list of text": lambda: ["trace"],
    "list with an unhashable": lambda: [["weight"], "bias"],
    "tuple logit": lambda: ("logit", 0),
    "tuple logit out of range": lambda: ("logit", 99),
    "tuple logit of text": lambda: ("logit", "0"),
    "tuple logit alone": lambda: ("logit",),
    "parameter names": lambda: ["weight", "bias"],
    "unknown names": lambda: ["weight", "nothing"],
    "repeated names": lambda: ["weight", "weight"],
    "names as text": lambda: "weight",
    "numbers as names": lambda: [0, 1],
}

MEMORY: Values = {
    "None": lambda: None,
    "4GiB": lambda: "4GiB",
    "1": lambda: 1,
    "0": lambda: 0,
    "negative": lambda: -1,
    "-1GiB": lambda: "-1GiB",
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "nanGiB": lambda: "nanGiB",
    "1e400B": lambda: "1e400B",
    "lots": lambda: "lots",
    "10**400": lambda: 10**400,
    "True": lambda: True,
    "bytes": lambda: b"4GiB",
    "list": lambda: ["4GiB"],
    "1KiB": lambda: "1KiB",
}

DEVICES: Values = {
    "cuda": lambda: "cuda",
    "cuda:99": lambda: "cuda:99",
    "meta": lambda: "meta",
    "cpu": lambda: "cpu",
    "cpu:7": lambda: "cpu:7",
    "junk": lambda: "gpu",
    "empty": lambda: "",
    "number": lambda: 0,
    "device": lambda: torch.device("cpu"),
    "mps": lambda: "mps",
    "xla": lambda: "xla",
    "float32": lambda: torch.float32,
    "float64": lambda: torch.float64,
    "float16": lambda: torch.float16,
    "int64": lambda: torch.int64,
    "complex64": lambda: torch.complex64,
    "dtype as text": lambda: "float64",
    "numpy dtype": lambda: np.float64,
    "float": lambda: float,
}

CALLABLES: Values = {
    "not callable": lambda: 3,
    "no arguments": lambda: lambda: None,
    "returns None": lambda: lambda *arguments: None,
    "returns text": lambda: lambda *arguments: "a",
    "returns a number": lambda: lambda *arguments: 1.0,
    "returns its argument": lambda: lambda first, *others: first,
    "returns its last argument": lambda: lambda *arguments: arguments[-1],
    "returns a 0-d tensor": lambda: lambda *arguments: torch.tensor(1.0),
    "returns NaN": lambda: lambda *arguments: torch.full((4, 2), math.nan),
    "returns (4, 2)": lambda: lambda *arguments: torch.ones(4, 2),
    "returns numpy": lambda: lambda *arguments: np.ones((4, 2)),
    "five arguments": lambda: lambda a, b, c, d, e: a,
    "class": lambda: dict,
    "builtin len": lambda: len,
    "cross_entropy": lambda: torch.nn.functional.cross_entropy,
    "loss module": nn.CrossEntropyLoss,
    "optimizer class": lambda: torch.optim.SGD,
    "keyword only": lambda: lambda *, x=1: x,
}

MODELS: Values = {
    "class": lambda: nn.Linear,
    "function": lambda: torch.relu,
    "no parameters": nn.ReLU,
    "integer outputs": lambda: nn.Sequential(nn.Linear(3, 2), nn.Flatten(0)),
    "other width": lambda: nn.Linear(5, 2),
    "one output": lambda: nn.Linear(3, 1),
    "returns None": _BrokenModule,
    "float16": lambda: nn.Linear(3, 2).half(),
    "complex": lambda: nn.Linear(3, 2, dtype=torch.complex64),
    "meta": lambda: nn.Linear(3, 2, device="meta"),
    "lazy": lambda: nn.LazyLinear(2),
    "frozen": lambda: nn.Linear(3, 2).requires_grad_(False),
    "NaN weights": lambda: _constant_linear(math.nan),
    "1e38 weights": lambda: _constant_linear(1e38),
    "dropout in training": lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2)),
    "batch norm in training": lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)),
    "recurrent": lambda: nn.LSTM(3, 2),
    "state dict": lambda: nn.Linear(3, 2).state_dict(),
    "parameter": lambda: nn.Parameter(torch.ones(3, 2)),
}


def _constant_linear(value: float) -> nn.Module:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.fill_(value)
    return model


PATHS: Values = {
    "NUL byte": lambda: "a\0b",
    "bytes": lambda: b"nowhere/a",
    "missing parents": lambda: Path("nowhere/a/b"),
    "device": lambda: "/dev/null",
    "below a device": lambda: "/dev/null/a",
    "too long": lambda: "nowhere/" + "x" * 5000,
    "surrogate": lambda: "nowhere/\udc80",
    "empty": lambda: "",
    "this directory": lambda: ".",
    "list": lambda: ["a"],
    "number": lambda: 7,
    "None": lambda: None,
}

OBJECTS: Values = {
    "object": object,
    "None": lambda: None,
    "class": lambda: dict,
    "module": lambda: math,
    "options of another class": lambda: Junk("object", "", object),
    "exception": lambda: ValueError("a"),
    "ellipsis": lambda: ...,
    "slice": lambda: slice(0, 2),
    "type": lambda: int,
    "random generator": lambda: np.random.default_rng(0),
    "torch generator": torch.Generator,
    "False": lambda: False,
}

KINDS: Mapping[str, tuple[Junk, ...]] = {
    kind: tuple(Junk(kind, label, make) for label, make in values.items())
    for kind, values in {
        "array": ARRAYS,
        "number": NUMBERS,
        "text": TEXTS,
        "memory": MEMORY,
        "device": DEVICES,
        "callable": CALLABLES,
        "model": MODELS,
        "path": PATHS,
        "object": OBJECTS,
    }.items()
}
"""Kinds of arguments, with fixed values of each; "device" has dtypes too, "number" counts and seeds, "array" labels."""
