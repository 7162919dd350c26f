"""A small network, its rows, and its kernel in tiles."""

import torch
from torch import nn

from kernelmem.kernels.large import StoreOptions
from kernelmem.kernels.large.inputs import Inputs
from kernelmem.kernels.large.run import StoredKernel
from kernelmem.kernels.large.tangent_files import TangentFiles
from kernelmem.kernels.large.worker import Schedule, Worker


class Network(nn.Module):
    """A convolution (explicit tangents), linear layers (vectors, a readout), and a gain that no rule covers."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.hidden, self.readout = nn.Conv1d(2, 3, 3), nn.Linear(12, 5), nn.Linear(5, 3)
        self.gain = nn.Parameter(torch.ones(5))
        self.to(dtype)

    def forward(self, x):
        hidden = torch.tanh(self.hidden(torch.relu(self.conv(x)).flatten(1)))
        return self.readout(hidden * self.gain.cumsum(0))


def rows(n, dtype=torch.float64, seed=1):
    return torch.randn(n, 2, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def worker(inputs: Inputs, engine, schedule: Schedule, files: TangentFiles | None, keep: int) -> Worker:
    return Worker(inputs, "0" * 64, schedule, engine, files, keep)


def kernel_of(worker: Worker) -> torch.Tensor:
    """All tiles of a kernel, put together."""
    n, m = worker.sides[0].rows.n, worker.sides[-1].rows.n
    K, tile = torch.full((n, m), torch.nan, dtype=worker.engine.prepared.dtype), worker.schedule.tile
    for i in range(-(-n // tile)):
        for j in range(i if worker.symmetric else 0, -(-m // tile)):
            block = worker.tile(i, j)
            K[worker.rows(0, i).start : worker.rows(0, i).stop, worker.rows(len(worker.sides) - 1, j).start :][
                :, : block.shape[1]
            ] = block
            if worker.symmetric:
                K[worker.rows(0, j).start : worker.rows(0, j).stop, worker.rows(0, i).start :][:, : len(block)] = (
                    block.T
                )
    return K


def stored_kernel(model, x, y=None, outputs="trace", **options) -> StoredKernel:
    return StoredKernel.of(model, x, y, outputs, None, StoreOptions(**options))
