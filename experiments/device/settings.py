"""Sizes of the device checks, and the machine they ran on."""

import platform
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch

import kernelmem
from kernelmem.core.models import with_float32_products

__all__ = ["Sizes", "describe", "deterministic_convolutions", "median_seconds", "peak_bytes", "reset_peak", "tf32"]


@dataclass(frozen=True)
class Sizes:
    """How much is computed; ``quick`` sizes take seconds on one core."""

    quick: bool = False

    @property
    def rows(self) -> int:
        """Rows of the equality checks."""
        return 24 if self.quick else 64

    @property
    def digits(self) -> int:
        """Training rows of the digits."""
        return 60 if self.quick else 300

    @property
    def steps(self) -> int:
        """Steps of recorded runs."""
        return 4 if self.quick else 24

    @property
    def kernels(self) -> dict[str, tuple[int, str]]:
        """Rows and outputs of the kernel benchmarks by name."""
        if self.quick:
            return {"W2 trace": (3, "trace")}
        return {
            "W1 trace": (4000, "trace"),
            "W1 full": (512, "full"),
            "W2 trace": (1024, "trace"),
            "W2 full": (256, "full"),
            "W3 trace": (256, "trace"),
            "W4 trace": (512, "trace"),
            "vit trace": (256, "trace"),
        }


def describe(device: str) -> dict[str, object]:
    """Name the card (or processor) and the versions."""
    facts: dict[str, object] = {"device": platform.processor() or platform.machine(), "torch": torch.__version__}
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        facts |= {"device": properties.name, "memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return facts | {"kernelmem": kernelmem.__version__, "cpu_threads": torch.get_num_threads()}


def synchronize(device: str) -> None:
    """Wait until ``device`` has done what it was asked."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def median_seconds(function: Callable[[], object], device: str, calls: int = 3) -> float:
    """Median time of ``calls`` calls after one that is not timed."""
    seconds = []
    for _ in range(calls + 1):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[1:])[calls // 2]


def reset_peak(device: str) -> int:
    """Forget the peak of allocated device memory, and return what is allocated."""
    if not device.startswith("cuda"):
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak_bytes(device: str) -> int:
    """Return the peak of allocated device memory since :func:`reset_peak`; 0 on the CPU, where it is not counted."""
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else 0


@contextmanager
def tf32(enabled: bool):
    """Let CUDA round the factors of float32 products to TF32 inside a ``with`` block, or not at all."""
    with with_float32_products(["tf32" if enabled else "ieee"] * 3):
        yield


@contextmanager
def deterministic_convolutions():
    """Let cuDNN choose algorithms that give the same bits in every call inside a ``with`` block."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before
