"""Training on pictures as the published width sweeps do it: random crops and flips, Adam or SGD, on any device."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernelmem.core.errors import InputError, NumericalError
from kernelmem.training.batching import shuffled

__all__ = ["PictureTraining", "crops_and_flips"]


@dataclass(frozen=True)
class PictureTraining:
    """A ``train`` for :func:`kernelmem.double_descent.sweeps.sweep.sweep`: train(model, x, y, seed) on pictures (n, channels, H, W).

    The settings are those of Nakkiran et al. 2019: Adam at 1e-4 for 4,000 epochs, batches of 128, crops and flips; with
    "sgd" the learning rate falls as 1/√(1 + t / 512). It ends where its epochs end: no best epoch is looked for.

    Attributes:
        epochs: passes over the data.
        batch_size: rows a step.
        learning_rate: of the first step.
        optimizer: "adam" or "sgd".
        padding: pixels of zeros around a picture, of which a part of its own size is cut at random; 0: no crops.
        flips: whether half of the pictures are mirrored.
        device: where to train; None: "cuda" where there is one, else the CPU. The model comes back to where it was.

    Raises:
        InputError: rows that are no pictures, an unknown optimizer. NumericalError: a loss that is not finite.
    """

    epochs: int = 4000
    batch_size: int = 128
    learning_rate: float = 1e-4
    optimizer: Literal["adam", "sgd"] = "adam"
    padding: int = 4
    flips: bool = True
    device: str | None = None

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, seed: int) -> None:
        """Train in place; the same seed, versions, threads and device give the same weights."""
        if x.ndim != 4 or self.optimizer not in ("adam", "sgd"):
            raise InputError(
                f"rows of shape {tuple(x.shape[1:])}, optimizer={self.optimizer!r}",
                expected='pictures (channels, H, W), "adam" or "sgd"',
                hint="reshape the rows, as kernelmem.training.image_datasets gives them",
            )
        home = next(model.parameters()).device
        place = torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model.to(place).train()
        x, y = x.to(place), y.to(place)
        parameters = list(model.parameters())
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.SGD
        optimizer = kind(parameters, lr=self.learning_rate)
        generator = torch.Generator().manual_seed(seed)
        step, loss = 0, torch.zeros(())
        for batches in shuffled(len(x), self.batch_size, epochs=self.epochs, seed=seed):
            for index in batches:
                if self.optimizer == "sgd":
                    optimizer.param_groups[0]["lr"] = self.learning_rate / (1 + step / 512) ** 0.5
                own = index.to(place)
                rows = crops_and_flips(x[own], self.padding, self.flips, generator)
                optimizer.zero_grad(set_to_none=True)
                loss = F.cross_entropy(model(rows), y[own])
                loss.backward()
                optimizer.step()
                step += 1
            if not bool(torch.isfinite(loss)):
                raise NumericalError(
                    f"a loss of {loss.item()} after {step} steps at learning rate {self.learning_rate:g}",
                    expected="a finite loss",
                    hint="lower the learning rate, or scale the pictures",
                )
        model.to(home).eval()


def crops_and_flips(x: Tensor, padding: int, flips: bool, generator: torch.Generator) -> Tensor:
    """Cut each padded picture (n, channels, H, W) at a place of its own and mirror half of them, at random."""
    n, _, high, wide = x.shape
    if padding:
        x = F.pad(x, (padding,) * 4)
        top, left = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator).to(x.device)
        rows, columns = top + torch.arange(high, device=x.device), left + torch.arange(wide, device=x.device)
        every = torch.arange(n, device=x.device)[:, None, None]
        x = x.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if flips:
        mirrored = torch.rand(n, generator=generator).lt(0.5).to(x.device)
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return x
