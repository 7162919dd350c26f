"""A problem as the PyTorch engines take it."""

import torch
from torch import Tensor, nn

from experiments.benchmarks.ntk.materials import Problem
from experiments.benchmarks.ntk.workloads import build

__all__ = ["assemble", "full_layout"]


def assemble(problem: Problem) -> tuple[nn.Module, Tensor]:
    """The network with the stored weights, and all inputs."""
    model, _ = build(problem.workload, 1)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in problem.state.items()})
    return model, torch.from_numpy(problem.x)


def full_layout(gram: Tensor, n: int) -> Tensor:
    """(n·C, n·C) to (n, n, C, C)."""
    n_outputs = len(gram) // n
    return gram.reshape(n, n_outputs, n, n_outputs).permute(0, 2, 1, 3).contiguous()
