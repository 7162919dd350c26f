"""nngeometry's GramMatrix: the full kernel; the trace is read off it."""

import torch
from nngeometry import GramMatrix
from nngeometry.layercollection import LayerCollection
from torch.utils.data import DataLoader, TensorDataset

from experiments.benchmarks.ntk.gauges import available
from experiments.benchmarks.ntk.materials import Problem
from experiments.benchmarks.ntk.peers.interface import Engine, Unsupported, fits
from experiments.benchmarks.ntk.peers.torch_problem import assemble

__all__ = ["prepare"]


def prepare(problem: Problem) -> Engine:
    """All rows in one batch."""
    model, x = assemble(problem)
    if not x.is_floating_point():
        raise Unsupported("integer inputs: it asks for gradients of the inputs")
    try:
        LayerCollection.from_model(model)
    except Exception as error:  # it raises plain Exception
        raise Unsupported(str(error)) from error
    fits(2 * 4 * (problem.n * problem.n_outputs) ** 2, available())

    def kernel(rows):
        loader = DataLoader(TensorDataset(rows.clone()), batch_size=len(rows))
        gram = GramMatrix(model, loader).to_torch().detach()  # (C, n, C, n)
        if problem.outputs == "trace":
            return torch.einsum("anam->nm", gram).numpy()
        return gram.permute(1, 3, 0, 2).contiguous().numpy()

    return Engine(kernel, x)
