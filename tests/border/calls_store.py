"""Valid calls of stored kernels."""

import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch

import kernelmem as km
from tests.border.driver import Call

K = torch.tensor([[2.0, 1.0, 0.5], [1.0, 3.0, 0.25], [0.5, 0.25, 4.0]], dtype=torch.float64)
FOLDER = Path(tempfile.mkdtemp())
NUMBERS = count()
MODEL = torch.nn.Linear(3, 2, dtype=torch.float64)
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
FACTS = {"data": "three examples"}


def write(path: Path) -> Path:
    with km.KernelStore.create(path, FACTS, 3, tile=2, dtype=torch.float64) as store:
        for i, j in store.missing():
            store.put(i, j, K[2 * i : 2 * i + 2, 2 * j : 2 * j + 2])
    return path


STORE = km.KernelStore.open(write(FOLDER / "kernel.sqlite"))


def create(**arguments: object) -> None:
    km.KernelStore.create(**arguments).close()


def open_and_close(**arguments: object) -> None:
    km.KernelStore.open(**arguments).close()


def put(i: object, j: object, array: object) -> None:
    path = FOLDER / f"put{next(NUMBERS)}.sqlite"
    with km.KernelStore.create(path, FACTS, 3, tile=2, dtype=torch.float64) as store:
        store.put(i, j, array)
    path.unlink()


def subset(rows: object, path: Path) -> None:
    STORE.subset(rows, path).close()


def creation() -> dict[str, object]:
    path = FOLDER / f"{next(NUMBERS)}.sqlite"
    return {
        "path": path,
        "facts": FACTS,
        "n": 3,
        "m": 3,
        "tile": 2,
        "dtype": torch.float64,
        "symmetric": True,
        "notes": {},
    }


def reading(function: Callable[..., object], **arguments: object) -> Call:
    return Call(function, lambda: dict(arguments))


def compute(**arguments: object) -> None:
    km.ntk_store(**arguments).close()


def store_options() -> km.StoreOptions:
    return km.StoreOptions(labels=torch.tensor([0, 1, 0, 1]), tile=3)


CALLS = {
    "ntk_store": Call(
        compute,
        lambda: {
            "model": MODEL,
            "x": X,
            "y": None,
            "path": FOLDER / f"ntk{next(NUMBERS)}.sqlite",
            "outputs": "trace",
            "forward": None,
            "executor": None,
            "memory": "1GiB",
            "progress": None,
            "options": store_options(),
        },
        examples=0.1,
    ),
    "ntk_store_plan": Call(
        km.ntk_store_plan,
        lambda: {
            "model": MODEL,
            "x": X,
            "y": None,
            "path": FOLDER,
            "outputs": "trace",
            "forward": None,
            "executor": None,
            "memory": "1GiB",
            "options": store_options(),
        },
        examples=0.3,
    ),
    "StoreOptions": Call(
        km.StoreOptions,
        lambda: {
            "target": None,
            "labels": None,
            "parameters": None,
            "dtype": None,
            "device": None,
            "tile": 3,
            "tangents": None,
            "timeout": 1.0,
            "verify": True,
        },
        examples=0.1,
    ),
    "KernelStore.create": Call(create, creation, examples=0.1),
    "KernelStore.open": Call(
        open_and_close, lambda: {"path": STORE.file, "facts": FACTS, "write": False}, examples=0.5
    ),
    "KernelStore.put": Call(put, lambda: {"i": 0, "j": 0, "array": K[:2, :2]}, examples=0.1),
    "KernelStore.tile": reading(STORE.tile, i=0, j=1),
    "KernelStore.rows": reading(STORE.rows, start=0, stop=2),
    "KernelStore.entries": reading(STORE.entries, rows=torch.tensor([0, 2]), columns=torch.tensor([1])),
    "KernelStore.subset": Call(
        subset, lambda: {"rows": torch.tensor([2, 0]), "path": FOLDER / f"subset{next(NUMBERS)}.sqlite"}, examples=0.1
    ),
    "KernelStore.__matmul__": reading(lambda v: STORE @ v, v=K[0]),
}
