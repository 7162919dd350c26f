"""Products of float32 numbers on CUDA: with factors rounded to TF32 (11 bits), as torch allows by default, or not."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, cast

import torch


class _Setting(Protocol):
    fp32_precision: str  # "ieee", "tf32" or "none", which is "ieee" unless a general setting of torch says otherwise


def _settings() -> tuple[_Setting, ...]:
    """Return torch's settings for matrix products, convolutions and recurrent layers."""
    backends = torch.backends
    found = (backends.cuda.matmul, getattr(backends.cudnn, "conv", None), getattr(backends.cudnn, "rnn", None))
    return cast(tuple[_Setting, ...], found)


def float32_products() -> list[str]:
    """Return the present settings for matrix products, convolutions and recurrent layers: "ieee", "tf32" or "none"."""
    return [setting.fp32_precision for setting in _settings()]


def _set(values: Sequence[str]) -> None:
    for setting, value in zip(_settings(), values, strict=True):
        if setting.fp32_precision != value:
            setting.fp32_precision = value


@contextmanager
def with_float32_products(values: Sequence[str]) -> Iterator[None]:
    """Use the settings ``values``, as :func:`float32_products` returned them, inside a ``with`` block."""
    before = float32_products()
    try:
        _set(values)
        yield
    finally:
        _set(before)


class _FullFloat32:
    """Context in which no factor is rounded to TF32, for all threads: the last one that leaves it restores the settings."""

    def __init__(self) -> None:
        self._lock, self._depth = threading.Lock(), 0
        self._before: list[str] = []

    def __enter__(self) -> None:
        with self._lock:
            if not self._depth:
                self._before = float32_products()
                _set(["ieee" if value == "tf32" else value for value in self._before])
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if not self._depth:
                _set(self._before)


full_float32 = _FullFloat32()
