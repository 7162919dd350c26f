"""km.ntk, as a user calls it."""

import functools

import kernelmem as km
from experiments.benchmarks.ntk.materials import Problem
from experiments.benchmarks.ntk.peers.interface import Engine, Unsupported
from experiments.benchmarks.ntk.peers.torch_problem import assemble
from kernelmem.core import UnsupportedModelError

__all__ = ["prepare", "prepare_unverified"]


def prepare(problem: Problem, memory: str = "4GiB", verify: bool = True) -> Engine:
    """Warm after the first call, which also compares the kernel of a few rows; every call certifies its passes."""
    model, x = assemble(problem)

    def kernel(rows):
        try:
            return km.ntk(model, rows, outputs=problem.outputs, memory=memory, verify=verify).numpy()
        except UnsupportedModelError as error:
            raise Unsupported(str(error)) from error

    return Engine(kernel, x)


prepare_unverified = functools.partial(prepare, verify=False)
