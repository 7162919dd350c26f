"""The published width sweep of CIFAR-10: ResNet18 or a small convolutional network, 1 to 64 channels, from local files."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from kernelmem.core.errors import InputError
from kernelmem.double_descent.presets.digits import of_size, write_sweep
from kernelmem.double_descent.presets.image_training import PictureTraining
from kernelmem.double_descent.presets.resnet import ConvolutionalNetwork, ResNet18
from kernelmem.double_descent.sweeps.result import Sweep
from kernelmem.double_descent.sweeps.sweep import sweep
from kernelmem.training.datasets import LabeledData
from kernelmem.training.image_datasets import cifar10

__all__ = ["WIDTHS", "cifar_sweep", "run_cifar"]

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 24, 28, 32, 40, 48, 56, 64)
FAMILIES = {"resnet18": ResNet18, "cnn": ConvolutionalNetwork}


def cifar_sweep(
    directory: str | Path,
    *,
    family: Literal["resnet18", "cnn"] = "resnet18",
    widths: Sequence[int] = WIDTHS,
    noise: float = 0.15,
    training: PictureTraining | None = None,
    n: int | None = None,
    seeds: int = 3,
    control: int = 1,
    seed: int = 0,
    out: str | Path | None = None,
    executor: Executor | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Sweep:
    """Sweep the width of a network on CIFAR-10, as Nakkiran et al. 2019 do: 15 % wrong labels, Adam, crops and flips.

    Pixels are standardized by the mean and deviation of each color over the training rows. Each network is kept as it ends:
    the same call with the same ``out`` goes on after a kill. Their peak is near k = 10 at 15 % noise, read off figures.

    Args:
        directory: of the CIFAR-10 files, see :func:`kernelmem.training.image_datasets.cifar10`.
        family: "resnet18" or "cnn", the five-layer network.
        widths: channels of the first stage; 64 is the usual ResNet18.
        noise: share of wrong labels.
        training: how to train; None: the published settings, 4,000 epochs.
        n: training rows; None: all.
        seeds: number of curves.
        control: seeds of the control without noise.
        seed: of all draws.
        out: directory of what is done, see :func:`kernelmem.double_descent.sweeps.sweep.sweep`.
        executor: likewise.
        progress: likewise.

    Raises:
        InputError: no such files, an unknown family.

    Cost: one ResNet18 of width 64 for 4,000 epochs of 50,000 rows is days of one GPU; give fewer epochs, rows or widths.

    Source: Nakkiran, Kaplun, Bansal, Yang, Barak, Sutskever 2019.
    """
    if family not in FAMILIES:
        raise InputError(f"family={family!r}", expected=f"one of {', '.join(FAMILIES)}", hint='pass family="resnet18"')
    training = training or PictureTraining()
    return sweep(
        _standardized(cifar10(directory)),
        "width",
        widths,
        n=n,
        noise=noise,
        seeds=seeds,
        control=control,
        seed=seed,
        make_model=FAMILIES[family],
        train=training,
        device=training.device,
        out=out,
        chunk=1,
        executor=executor,
        progress=progress,
    )


_SIZES: dict[str, dict[str, Any]] = {
    "quick": {
        "widths": (1, 2, 4, 6, 8, 10, 12, 16, 24, 32), "n": 5000, "seeds": 2,
        "training": PictureTraining(epochs=200, learning_rate=1e-3),
    },
    "paper": {},
}  # fmt: skip


def run_cifar(
    directory: str | Path,
    size: Literal["quick", "paper"] = "quick",
    *,
    seed: int = 0,
    out: str | Path | None = None,
    executor: Executor | None = None,
    device: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Sweep:
    """Sweep CIFAR-10 and write summary.json, results.csv and figures to ``out``: "paper" as published, "quick" a part of it.

    "quick" has 5,000 rows, 10 widths and 200 epochs: hours of one GPU. Neither has been run on the real pictures here.
    """
    options = dict(of_size(_SIZES, size))
    options["training"] = replace(options.get("training", PictureTraining()), device=device)
    found = cifar_sweep(directory, seed=seed, out=out, executor=executor, progress=progress, **options)
    if out is not None:
        write_sweep(found, out)
    return found


def _standardized(data: LabeledData) -> LabeledData:
    mean = data.x_train.mean((0, 2, 3), keepdim=True)
    spread = data.x_train.std((0, 2, 3), keepdim=True).clamp_min(1e-3)
    return replace(data, x_train=(data.x_train - mean) / spread, x_test=(data.x_test - mean) / spread)
