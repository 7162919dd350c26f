"""Choice of the float32 product A Bᵀ: that of torch's BLAS, or oneDNN's, which is faster on some processors.

On Intel processors MKL, torch's BLAS, is the fastest; on AMD processors oneDNN is 1.4 to 2 times faster than MKL. The processor
vendor decides: oneDNN is considered on AMD processors only, and used if a measurement of about 30 ms at the first large product
confirms a gain of at least 15 %. The choice is kept for the process, so that results of one process are equal to the bit. Two
processes on an AMD processor that is busy may choose differently; their results then differ by rounding. The environment
variable KERNELMEM_GEMM, "torch" or "onednn", fixes the choice.
"""

import os
import platform
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from kernelmem.core.errors import InputError

VARIABLE = "KERNELMEM_GEMM"
LEAST_GAIN = 1.15  # smaller measured gains are not distinguished from noise
LEAST_OPERATIONS = 2**22  # smaller products gain nothing
CPU_INFO = Path("/proc/cpuinfo")
_lock = threading.Lock()


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Return ``left @ right.T``, of (n, p) and (m, p); the largest float32 products are those of :func:`choose`.

    The product is written into ``out`` (n, m) if torch's BLAS computes it.
    """
    return onednn_product(left, right) if uses_onednn(left, right) else torch.mm(left, right.T, out=out)


def uses_onednn(left: Tensor, right: Tensor) -> bool:
    """Return True if oneDNN computes ``left @ right.T``: large, float32, on the CPU, and stored without gaps."""
    if not left.dtype == right.dtype == torch.float32 or left.device.type != "cpu" or right.device.type != "cpu":
        return False
    if 2 * left.numel() * right.shape[0] < LEAST_OPERATIONS:
        return False
    needs_graph = torch.is_grad_enabled() and (left.requires_grad or right.requires_grad)
    return not needs_graph and _is_dense(left) and _is_dense(right) and choose() == "onednn"


def onednn_product(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left @ right.T`` by the inner product of oneDNN, an operator that torch has for its compiler."""
    return torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")


def choose() -> str:
    """Return the library of float32 products in this process, "torch" or "onednn".

    Raises:
        InputError: KERNELMEM_GEMM is neither, or is "onednn" and torch was built without it.
    """
    with _lock:
        return _choose()


@cache
def _choose() -> str:
    requested = os.environ.get(VARIABLE, "")
    if requested not in ("", "torch", "onednn"):
        raise InputError(
            f"{VARIABLE}={requested!r}", expected='"torch" or "onednn"', hint="unset it to let it be chosen"
        )
    if requested == "onednn" and not _has_onednn():
        raise InputError(
            f"{VARIABLE}='onednn' and a torch that cannot multiply by oneDNN", expected='"torch"', hint="unset it"
        )
    if requested:
        return requested
    return "onednn" if is_amd_processor() and _has_onednn() and measured_gain() >= LEAST_GAIN else "torch"


def is_amd_processor() -> bool:
    """Return True for the processors whose vendor is AMD, as the operating system names it."""
    try:
        lines = CPU_INFO.read_text(errors="replace").splitlines()
    except OSError:
        return "AuthenticAMD" in platform.processor()  # Windows
    return any(line.startswith("vendor_id") and "AuthenticAMD" in line for line in lines)


def measured_gain() -> float:
    """Return how many times faster oneDNN is than torch's BLAS for a product of 256 x 2,048 by 2,048 x 256."""
    left, right = torch.randn(2, 256, 2048, generator=torch.Generator().manual_seed(0))
    seconds = {"torch": float("inf"), "onednn": float("inf")}
    products: dict[str, Callable[[], Tensor]] = {
        "torch": lambda: torch.mm(left, right.T),
        "onednn": lambda: onednn_product(left, right),
    }
    for multiply in products.values():
        multiply()
    for _ in range(5):  # in turn, so that a busy machine slows both
        for name, multiply in products.items():
            start = time.perf_counter()
            multiply()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds["torch"] / seconds["onednn"]


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _is_dense(matrix: Tensor) -> bool:
    return matrix.is_contiguous() or matrix.T.is_contiguous()
