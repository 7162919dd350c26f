"""K += A Aᵀ by each of the products inside torch, and the fastest of them on this machine.

As a program it prints the machine's peak: `python -m experiments.benchmarks.ntk.peers.gemm THREADS`.
"""

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["add_gram_onednn", "add_gram_torch", "fastest_add_gram", "measure_peak"]


def add_gram_torch(gram: Tensor, a: Tensor) -> None:
    """By the BLAS torch is built with."""
    gram.addmm_(a, a.T)


def add_gram_onednn(gram: Tensor, a: Tensor) -> None:
    """By oneDNN's inner product, an operator torch keeps to itself; float32."""
    gram += torch.ops.mkldnn._linear_pointwise(a, a, None, "none", [], "")


def _candidates() -> list[Callable[[Tensor, Tensor], None]]:
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return [add_gram_torch, *([add_gram_onednn] if there else [])]


def fastest_add_gram(shape: tuple[int, int]) -> Callable[[Tensor, Tensor], None]:
    """Time each on matrices of this shape (at most 64 MB)."""
    n, k = shape
    a = torch.randn(n, max(1, min(k, 2**24 // n)))
    gram = torch.zeros(n, n)
    return min(_candidates(), key=lambda add: _seconds(lambda: add(gram, a)))


def measure_peak(orders: tuple[int, ...] = (2048, 4096)) -> float:
    """Most float32 GFLOP/s that any product reaches on square matrices."""
    rates = []
    for n in orders:
        a, gram = torch.randn(n, n), torch.zeros(n, n)
        rates += [2 * n**3 / _seconds(lambda add=add, a=a, g=gram: add(g, a)) / 1e9 for add in _candidates()]
    return max(rates)


def _seconds(call: Callable[[], object], repeats: int = 5) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(measure_peak())
