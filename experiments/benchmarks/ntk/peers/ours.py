"""km.ntk, as a user calls it."""

import kernelmem as km
from experiments.benchmarks.ntk.materials import Problem
from experiments.benchmarks.ntk.peers.interface import Engine, Unsupported
from experiments.benchmarks.ntk.peers.torch_problem import assemble
from kernelmem.core import UnsupportedModelError

__all__ = ["prepare"]


def prepare(problem: Problem, memory: str = "4GiB") -> Engine:
    """Warm after the first call: the plan is verified then."""
    model, x = assemble(problem)

    def kernel(rows):
        try:
            return km.ntk(model, rows, outputs=problem.outputs, memory=memory).numpy()
        except UnsupportedModelError as error:
            raise Unsupported(str(error)) from error

    return Engine(kernel, x)
