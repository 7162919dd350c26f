"""BackPACK's per-example gradients (BatchGrad), one output at a time, contracted by a GEMM; trace only."""

import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad

from experiments.benchmarks.ntk.gauges import available
from experiments.benchmarks.ntk.materials import Problem
from experiments.benchmarks.ntk.peers.gemm import add_gram_torch
from experiments.benchmarks.ntk.peers.interface import Engine, Unsupported, fits
from experiments.benchmarks.ntk.peers.torch_problem import assemble

__all__ = ["prepare"]


def prepare(problem: Problem) -> Engine:
    """One forward, C backwards. Networks that are no Sequential go through its converter."""
    if problem.outputs != "trace":
        raise Unsupported("one output at a time gives K^{cc} only")
    if problem.workload in ("W4", "vit"):
        raise Unsupported("no rule for LayerNorm")
    fits(3 * problem.jacobian_bytes // problem.n_outputs, available())
    model, x = assemble(problem)
    model = extend(model, use_converter=not isinstance(model, torch.nn.Sequential))
    model.eval()
    parameters = list(model.parameters())

    def kernel(rows):
        gram = torch.zeros(len(rows), len(rows))
        with backpack(BatchGrad(), retain_graph=True):
            outputs = model(rows)
            for c in range(problem.n_outputs):
                outputs[:, c].sum().backward(retain_graph=True)
                for p in parameters:
                    add_gram_torch(gram, p.grad_batch.flatten(1))
                    p.grad_batch, p.grad = None, None
        return gram.numpy()

    return Engine(kernel, x)
