"""Junk in any argument of any public function: an error of kernelmem or an answer, never anything else.

About 12,000 calls; ``test_valid_calls.py`` makes the calls without junk.
"""

import importlib
import os
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import kernelmem as km
from kernelmem.testing.strategies import KINDS, Junk, arrays, defects
from tests.border.driver import Call, run_call, targets_of
from tests.profiles import examples

TABLES = [
    importlib.import_module(f"tests.border.{path.stem}") for path in sorted(Path(__file__).parent.glob("calls_*.py"))
]
CALLS: dict[str, Call] = {name: call for table in TABLES for name, call in table.CALLS.items()}
CALLS_PER_EXAMPLE = 36  # of a function whose calls take less than a millisecond
N_DRAWN_ARRAYS = 4
EXAMPLES = settings(examples(0.1), phases=[Phase.generate])  # a failure names one call, which needs no shrinking


@pytest.fixture(autouse=True, scope="module")
def empty_directory(tmp_path_factory):
    """Relative paths among the junk are below a directory of their own."""
    before = os.getcwd()  # noqa: PTH109
    os.chdir(tmp_path_factory.mktemp("junk"))
    with warnings.catch_warnings():  # torch warns once when junk is made: sparse and nested tensors are in beta
        warnings.simplefilter("ignore")
        for value in (value for values in KINDS.values() for value in values):
            value.make()
    yield
    os.chdir(before)


def replacements(arguments: dict[str, object], drawn: list[Junk], source: random.Random) -> dict[str, Junk]:
    """One or two arguments with junk of any kind; half of the arrays are valid ones with a defect."""
    targets = targets_of(arguments)
    replaced = {}
    for _ in range(source.choice((1, 2))):
        target = source.choice(targets)
        valid = arguments.get(target)
        is_array = isinstance(valid, torch.Tensor) or (isinstance(valid, np.ndarray) and valid.dtype.kind in "iufb")
        kind = source.choice(list(KINDS))
        values = defects(valid) if is_array and source.random() < 0.5 else KINDS[kind]
        use_drawn = kind == "array" and source.random() < 0.5
        replaced[target] = source.choice(drawn if use_drawn else values)
    return replaced


@pytest.mark.parametrize("name", CALLS)
@EXAMPLES
@given(seed=st.integers(0, 2**32 - 1), drawn=st.lists(arrays(), min_size=N_DRAWN_ARRAYS, max_size=N_DRAWN_ARRAYS))
def test_junk_is_refused_or_answered(name, seed, drawn):
    """Hypothesis draws arrays and the seed of many calls: drawing each argument would take ten times as long."""
    call, source = CALLS[name], random.Random(seed)
    arguments = call.arguments()
    for _ in range(max(1, round(CALLS_PER_EXAMPLE * call.examples))):
        run_call(name, call, replacements(arguments, drawn, source))


def test_every_public_function_is_called():
    """A new public name needs a valid call here."""
    names = {name.split(".")[0].split("(")[0] for name in CALLS}
    results = {name for name in dir(km) if hasattr(getattr(km, name), "to_frame") or name.endswith("Error")}
    public = {name for name in dir(km) if callable(getattr(km, name)) and not name.startswith("_")}
    assert sorted(public - names - results) == []


@pytest.mark.parametrize("fault", ["error", "nan", "hang", "change", "random", "setting", "warning"])
def test_the_driver_sees_every_fault(fault, monkeypatch):
    monkeypatch.setattr("tests.border.driver.SECONDS", 0.2)
    default = torch.get_default_dtype()

    def function(x):
        if fault == "error":
            raise KeyError("x")
        if fault == "hang":
            while True:
                pass
        if fault == "change":
            x += 1
        if fault == "random":
            torch.rand(1)
        if fault == "setting":
            torch.set_default_dtype(torch.float64)
        if fault == "warning":
            warnings.warn("careless")
        return float("nan") if fault == "nan" else 0.0

    try:
        with torch.random.fork_rng(devices=[]), pytest.raises(AssertionError, match="function with"):
            run_call("function", Call(function, lambda: {"x": torch.ones(2)}), {})
    finally:
        torch.set_default_dtype(default)
