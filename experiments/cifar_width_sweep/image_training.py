"""Training on images as in the published width sweeps: random crops and flips, Adam or SGD, on any device."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernelmem.core import InputError, NumericalError
from kernelmem.training import shuffled


@dataclass(frozen=True)
class ImageTraining:
    """A ``train`` for :func:`kernelmem.double_descent.sweep`: train(model, x, y, seed) on images (n, channels, H, W).

    The settings are those of Nakkiran et al. 2019: Adam at 1e-4 for 4,000 epochs, batches of 128, crops and flips; with
    "sgd" the learning rate falls as 1/√(1 + t / 512). The last epoch counts: no best epoch is selected.

    Attributes:
        epochs: passes over the data.
        batch_size: images per step.
        lr: learning rate of the first step.
        optimizer: "adam" or "sgd".
        padding: zero pixels around an image, from which a random crop of the original size is taken; 0: no crops.
        flips: mirror half of the images at random.
        device: where to train; None: "cuda" if there is one, else the CPU. The model is moved back afterwards.

    Raises:
        InputError: inputs that are not images, an unknown optimizer.
        NumericalError: a loss that is not finite.
    """

    epochs: int = 4000
    batch_size: int = 128
    lr: float = 1e-4
    optimizer: Literal["adam", "sgd"] = "adam"
    padding: int = 4
    flips: bool = True
    device: str | None = None

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, seed: int) -> None:
        """Train in place; the same seed, versions, threads and device give the same weights."""
        if x.ndim != 4 or self.optimizer not in ("adam", "sgd"):
            raise InputError(
                f"inputs of shape {tuple(x.shape[1:])}, optimizer={self.optimizer!r}",
                expected='images (channels, H, W), "adam" or "sgd"',
                hint="reshape the inputs, as kernelmem.training.image_datasets does",
            )
        original_device = next(model.parameters()).device
        device = torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model.to(device).train()
        x, y = x.to(device), y.to(device)
        parameters = list(model.parameters())
        make_optimizer = torch.optim.Adam if self.optimizer == "adam" else torch.optim.SGD
        optimizer = make_optimizer(parameters, lr=self.lr)
        generator = torch.Generator().manual_seed(seed)
        step, loss = 0, torch.zeros(())
        for batches in shuffled(len(x), self.batch_size, epochs=self.epochs, seed=seed):
            for index in batches:
                if self.optimizer == "sgd":
                    optimizer.param_groups[0]["lr"] = self.lr / (1 + step / 512) ** 0.5
                batch = index.to(device)
                images = crops_and_flips(x[batch], self.padding, self.flips, generator)
                optimizer.zero_grad(set_to_none=True)
                loss = F.cross_entropy(model(images), y[batch])
                loss.backward()
                optimizer.step()
                step += 1
            if not bool(torch.isfinite(loss)):
                raise NumericalError(
                    f"a loss of {loss.item()} after {step} steps at learning rate {self.lr:g}",
                    expected="a finite loss",
                    hint="lower the learning rate, or scale the images",
                )
        model.to(original_device).eval()


def crops_and_flips(x: Tensor, padding: int, flips: bool, generator: torch.Generator) -> Tensor:
    """Crop each padded image (n, channels, H, W) at a random position and mirror half of them, at random."""
    n, _, height, width = x.shape
    if padding:
        x = F.pad(x, (padding,) * 4)
        top, left = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator).to(x.device)
        rows, columns = top + torch.arange(height, device=x.device), left + torch.arange(width, device=x.device)
        image = torch.arange(n, device=x.device)[:, None, None]  # (n, 1, 1), with rows (n, H, 1) and columns (n, 1, W)
        x = x.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if flips:
        mirrored = torch.rand(n, generator=generator).lt(0.5).to(x.device)
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return x
