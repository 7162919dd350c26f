"""Width sweep of a ResNet18 or a small convolutional network on CIFAR-10, 1 to 64 channels, from local files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.cifar_width_sweep.image_training import ImageTraining
from experiments.cifar_width_sweep.networks import ConvolutionalNetwork, ResNet18
from kernelmem.core import InputError, Progress
from kernelmem.double_descent import Execution, Sweep, SweepOptions, sweep
from kernelmem.double_descent.presets import write_sweep
from kernelmem.training import LabeledData, cifar10

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 24, 28, 32, 40, 48, 56, 64)
OPTIONS = SweepOptions(control=1)
EXECUTION = Execution()
FAMILIES = {"resnet18": ResNet18, "cnn": ConvolutionalNetwork}


def cifar_sweep(
    directory: str | Path,
    *,
    family: Literal["resnet18", "cnn"] = "resnet18",
    widths: Sequence[int] = WIDTHS,
    noise: float = 0.15,
    training: ImageTraining | None = None,
    n_seeds: int = 3,
    seed: int = 0,
    options: SweepOptions = OPTIONS,
    execution: Execution = EXECUTION,
    progress: Progress = None,
) -> Sweep:
    """Sweep the width of a network on CIFAR-10 as Nakkiran et al. 2019 do: 15 % wrong labels, Adam, crops and flips.

    Pixels are standardized by the mean and standard deviation of each color over the training images. Every network is
    saved when it ends: the same call with the same ``out`` resumes. The published peak is near k = 10 at 15 % noise (read
    off figures).

    Args:
        directory: directory of the CIFAR-10 files, see :func:`kernelmem.training.image_datasets.cifar10`.
        family: "resnet18" or "cnn", the five-layer network.
        widths: channels of the first stage; 64 is the usual ResNet18.
        noise: fraction of wrong labels.
        training: training procedure; None: the published settings, 4,000 epochs.
        n_seeds: number of curves.
        seed: seed of all draws.
        options: ``n`` and ``control`` of the sweep; default: all images, one seed without noise.
        execution: output directory and executor.
        progress: called with (networks done, networks in total).

    Raises:
        InputError: missing files, an unknown family.

    Cost: one ResNet18 of width 64 for 4,000 epochs of 50,000 images is days of one GPU; pass fewer epochs, n or widths.

    Source: Nakkiran, Kaplun, Bansal, Yang, Barak, Sutskever 2019.
    """
    if family not in FAMILIES:
        raise InputError(f"family={family!r}", expected=f"one of {', '.join(FAMILIES)}", hint='pass family="resnet18"')
    training = training or ImageTraining()
    options = replace(options, make_model=FAMILIES[family], train=training)
    return sweep(
        _standardized(cifar10(directory)),
        "width",
        widths,
        noise=noise,
        n_seeds=n_seeds,
        seed=seed,
        options=options,
        execution=replace(execution, chunk=1, device=training.device),
        progress=progress,
    )


@dataclass(frozen=True)
class Options:
    """Sweep the width of ResNet18 on CIFAR-10 and write summary.json, results.csv, sweep.safetensors and figures."""

    data: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Directory of the CIFAR-10 files."""
    size: Literal["quick", "paper"] = "quick"
    """quick: 5,000 images, 10 widths, 200 epochs, hours of one GPU; paper: the published settings, weeks of one GPU."""
    seed: int = 0
    """Seed of all draws."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("out/cifar_width_sweep")
    """Directory of the results; a killed run resumes there."""
    device: str | None = None
    """Device of the training; default: cuda if there is one, else the CPU."""


QUICK = {
    "widths": (1, 2, 4, 6, 8, 10, 12, 16, 24, 32),
    "n_seeds": 2,
    "training": ImageTraining(epochs=200, lr=1e-3),
    "options": SweepOptions(n=5000, control=1),
}


def run(options: Options) -> Sweep:
    settings = dict(QUICK) if options.size == "quick" else {}
    settings["training"] = replace(settings.get("training", ImageTraining()), device=options.device)
    result = cifar_sweep(options.data, seed=options.seed, execution=Execution(out=options.out), **settings)
    write_sweep(result, options.out)
    print(result)
    print(f"results in {options.out}")
    return result


def _standardized(data: LabeledData) -> LabeledData:
    mean = data.x_train.mean((0, 2, 3), keepdim=True)
    std = data.x_train.std((0, 2, 3), keepdim=True).clamp_min(1e-3)
    return replace(data, x_train=(data.x_train - mean) / std, x_test=(data.x_test - mean) / std)
