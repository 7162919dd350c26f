"""Laws of valid calls: no global setting or random state changes, and results do not depend on the default dtype."""

import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import kernelmem as km
from kernelmem import training
from tests.border.calls_kernels import X, Y, model
from tests.border.driver import Call, run_call

MODULES = sorted(path.stem for path in Path(__file__).parent.glob("calls_*.py"))
CALLS: dict[str, Call] = {}
for module in MODULES:
    CALLS |= importlib.import_module(f"tests.border.{module}").CALLS
CALLS |= {
    "standardized_mlp": Call(
        lambda **options: training.standardized_mlp(**options).state_dict(),
        lambda: {"x": torch.arange(12.0).reshape(4, 3), "n_classes": 2, "seed": 0},
    ),
    "mlp": Call(
        lambda **options: training.mlp(**options).state_dict(), lambda: {"d": 2, "widths": 3, "C": 2, "seed": 0}
    ),
    "train_classifier": Call(
        training.train_classifier,
        lambda: {"model": model(), "x": X, "y": Y, "epochs": 2, "seed": 0},
        changes=frozenset({"model"}),
    ),
}
USERS_FACTORIES = (
    "train_modules",
    "predict_curve",
    "counterfactual",
    "capacity",
)  # a factory of the user makes the model, in the default dtype
TIMES_AND_PLACES = ("seconds", "path", "file", "reproduce")


@pytest.mark.parametrize("name", CALLS)
def test_nothing_global_changes(name):
    run_call(name, CALLS[name], {})


@pytest.mark.parametrize("name", [name for name in CALLS if name not in USERS_FACTORIES])
def test_the_default_dtype_does_not_matter(name):
    first, second = (called_with_default(dtype, CALLS[name]) for dtype in (torch.float32, torch.float64))
    assert first == second


def called_with_default(dtype: torch.dtype, call: Call) -> dict[str, object]:
    arguments = call.arguments()
    try:
        torch.set_default_dtype(dtype)
        result = call.function(**arguments)
    except km.KernelmemError as error:
        result = str(error)
    finally:
        torch.set_default_dtype(torch.float32)
    if isinstance(result, km.Run):
        result = [result.weights(t) for t in result.kept]
    return dict(flattened(result))


def flattened(value: object, place: str = "") -> Iterator[tuple[str, object]]:
    """Yield (place, comparable value) of everything in a result, but for times and places on disk."""
    if isinstance(value, Tensor):
        value = value.detach()
        yield place, (str(value.dtype), tuple(value.shape), value.flatten().clone().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        yield place, (value.dtype.str, value.shape, value.tobytes())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            if field.name not in TIMES_AND_PLACES:
                yield from flattened(getattr(value, field.name), f"{place}.{field.name}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from flattened(item, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for key, item in enumerate(value):
            yield from flattened(item, f"{place}.{key}")
    elif isinstance(value, bool | int | float | str | np.generic | None):
        yield place, repr(value)
