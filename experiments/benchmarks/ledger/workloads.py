"""The runs that are analyzed: network, data, optimizer, all drawn from fixed seeds, and the recording."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kernelmem.label_noise import corrupt_labels
from kernelmem.recording import Recorder, Run

__all__ = ["OPTIMIZERS", "Problem", "Workload", "record", "train"]

Data = tuple[Tensor, Tensor, Tensor]  # inputs (n, d), labels (n,), which of them are flipped (n,)

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}
OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.05}),
    "momentum": (torch.optim.SGD, {"lr": 0.02, "momentum": 0.9}),
    "momentum-decay": (torch.optim.SGD, {"lr": 0.03, "momentum": 0.9, "weight_decay": 1e-3}),
    "adam": (torch.optim.Adam, {"lr": 1e-3}),
    "adamw": (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.05}),
}


@dataclass(frozen=True)
class Workload:
    """A training run. Inputs are digits where the network takes 64 numbers, else normal draws with random labels."""

    sizes: tuple[int, ...]  # of the layers
    activation: str
    optimizer: str
    steps: int
    dtype: str = "float32"
    n: int = 128
    batch: int = 16
    tests: int = 6
    flipped: float = 0.0  # of the labels

    @property
    def network(self) -> str:
        """As tables call it."""
        return "-".join(map(str, self.sizes)) + f" {self.activation}"

    def model(self) -> nn.Sequential:
        """The network before training."""
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for i, (wide, narrow) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            layers += [ACTIVATIONS[self.activation]()] if i else []
            layers.append(nn.Linear(wide, narrow))
        return nn.Sequential(*layers).to(getattr(torch, self.dtype))

    def data(self) -> Data:
        """Drawn anew at every call, the same every time."""
        if self.sizes[0] == 64:
            from sklearn.datasets import load_digits

            x, y = (torch.tensor(part[: self.n]) for part in load_digits(return_X_y=True))
            x = x / 16
        else:
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(self.n, self.sizes[0], generator=generator, dtype=torch.float64)
            y = torch.randint(0, self.sizes[-1], (self.n,), generator=generator)
        flipped = torch.zeros(self.n, dtype=torch.bool)
        if self.flipped:
            noisy = corrupt_labels(y, self.flipped, seed=0)
            y, flipped = noisy.y, noisy.flipped
        return x.to(getattr(torch, self.dtype)), y.long(), flipped

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """As it is before the first step."""
        kind, options = OPTIMIZERS[self.optimizer]
        return kind(model.parameters(), **options)


def batches(workload: Workload) -> Iterator[Tensor]:
    """Positions of each step's examples, epoch after epoch in random order."""
    generator = torch.Generator().manual_seed(1)
    queue: list[Tensor] = []
    for _ in range(workload.steps):
        queue = queue or list(torch.randperm(workload.n, generator=generator).split(workload.batch))
        yield queue.pop(0)


def train(workload: Workload, step: Callable[[Tensor, Tensor, Tensor], None], model: nn.Module, optimizer) -> None:
    """The loop, with the step that is handed in."""
    x, y, _ = workload.data()
    for index in batches(workload):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[index]), y[index]).backward()
        step(index, x[index], y[index])


def record(workload: Workload, directory: Path, keep: str = "all") -> Run:
    """Train and record."""
    model = workload.model()
    optimizer = workload.make_optimizer(model)
    with Recorder(model, optimizer, directory, loss="cross_entropy", keep=keep) as recorder:
        train(workload, recorder.step, model, optimizer)
    return Run.open(directory)


@dataclass(frozen=True)
class Problem:
    """A recorded run, its data, and the rows to explain."""

    workload: Workload
    run: Run
    data: Data

    @classmethod
    def make(cls, workload: Workload, directory: Path) -> "Problem":
        """Record the run; the data go to a file next to it, so that no analysis loads the code that draws them."""
        run = record(workload, directory)
        torch.save(workload.data(), directory / "data.pt")
        return cls.open(workload, run.path)

    @classmethod
    def open(cls, workload: Workload, directory: Path) -> "Problem":
        """What ``make`` wrote."""
        return cls(workload, Run.open(directory), torch.load(directory / "data.pt"))

    @property
    def x(self) -> Tensor:
        """The rows: the first of the training data, so that own contributions are among the others."""
        return self.data[0][: self.workload.tests]

    def change(self, log_probabilities: bool, start: int, stop: int) -> Tensor:
        """f(x; w_stop) − f(x; w_start) in float64, (m, C)."""
        model = self.workload.model().double()
        values = []
        for t in (start, stop):
            model.load_state_dict(self.run.weights(t))
            with torch.no_grad():
                outputs = model(self.x.double())
            values.append(outputs.log_softmax(1) if log_probabilities else outputs)
        return values[1] - values[0]
