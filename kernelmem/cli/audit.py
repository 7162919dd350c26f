"""``kernelmem audit``: train (or take) a network, audit it, write the report."""

import io
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from torch import nn
from tqdm import tqdm

from kernelmem.auditing import audit
from kernelmem.cli.model_factory import build_model
from kernelmem.core.atomic_files import check_directory
from kernelmem.core.batches import as_rows
from kernelmem.core.checks import seed_sequence
from kernelmem.core.errors import InputError, KernelmemError
from kernelmem.core.weight_files import fit_weights, load_weights, weights_bytes
from kernelmem.label_noise.corrupt import corrupt_labels
from kernelmem.tangents.prepare import prepare
from kernelmem.training.classifier import train_classifier
from kernelmem.training.datasets import LabeledData, digits, read_npz
from kernelmem.training.mlp import standardized_mlp

__all__ = ["AuditCommand"]

DEFAULT_NOISE = 0.15  # of the embedded digits; the user's own labels are left alone unless --noise says otherwise


@dataclass(frozen=True)
class AuditCommand:
    """Audit what a network memorized: report in OUT/audit.html, numbers in OUT/audit.json.

    Without options: scikit-learn's digits with 15 % of the training labels flipped, a small network trained on them.
    """

    data: Annotated[Path | None, tyro.conf.arg(metavar="FILE.npz")] = None
    """Arrays x_train, y_train, x_test, y_test; optional: flipped, image_shape. Default: the embedded digits."""
    model: Annotated[str | None, tyro.conf.arg(metavar="PACKAGE.MODULE:FACTORY")] = None
    """Function that returns a torch.nn.Module (this runs its code). Default: a small multilayer perceptron."""
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Trained weights (.safetensors; .pt by weights_only loading). Default: train here."""
    noise: Annotated[float | None, tyro.conf.arg(metavar="RATE")] = None
    """Share of the training labels to flip before training (0..1). Default: 0.15 for the digits, 0 for --data."""
    noise_kind: Literal["symmetric", "uniform", "pair", "confusable", "instance"] = "symmetric"
    """How labels are flipped."""
    epochs: int = 80
    """Passes over the data, where the network is trained here."""
    seed: int = 0
    """Of the split, the flips, the initial weights and the batch order."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("out/audit")
    """Directory of the report."""
    device: str = "cpu"
    """Where to compute, e.g. cuda."""
    json: bool = False
    """Print audit.json instead of the summary."""

    def run(self) -> None:
        """Carry it out."""
        device = self._device()
        check_directory(self.out)  # before minutes of training, not after
        seeds = seed_sequence(self.seed, ["split", "flips", "weights", "batches"])
        data = read_npz(self.data) if self.data else digits(seed=self.seed)
        rate = self._rate()
        self._check_labels(data, rate)
        clean, flips = data.y_train, ""
        if rate:
            corrupted = corrupt_labels(
                clean, rate, self.noise_kind, seed=seeds["flips"], x=data.x_train.reshape(len(clean), -1)
            )
            data = data.with_labels(corrupted.y, corrupted.flipped)
            flips = f"; {int(corrupted.flipped.sum()):,} labels flipped before ({self.noise_kind})"
        model, training = self._network(data, seeds, device)
        bars = _Bars()
        extra = {} if self.weights else {"weights.safetensors": weights_bytes(model)}
        if rate:
            extra["labels.npz"] = _npz(y_train=data.y_train, flipped=data.flipped, y_train_before=clean)
        try:
            result = audit(
                model,
                (data.x_train, data.y_train),
                (data.x_test, data.y_test),
                out=self.out,
                flipped=data.flipped,
                image_shape=data.image_shape,
                name=data.name,
                model_name=self.model or "the default MLP",
                training=training + flips,
                reproduce=self._command(),
                seed=self.seed,
                device=device,
                extra_files=extra,
                progress=bars,
            )
        finally:
            bars.close()
        if self.json:
            print(result.to_json(), end="")
        else:
            print(f"\n{result}\n\n  report         {(self.out / 'audit.html').resolve()}")

    def _rate(self) -> float:
        rate = self.noise if self.noise is not None else (0.0 if self.data or self.weights else DEFAULT_NOISE)
        if not 0 <= rate <= 1:
            raise InputError(f"--noise {rate:g}", expected="a share in 0..1", hint="e.g. --noise 0.15")
        if rate and self.weights:
            raise InputError(
                f"--noise {rate:g} together with --weights",
                expected="labels as the network was trained on",
                hint="leave one of them out; known flips of your own go into the .npz as an array `flipped`",
            )
        return rate

    def _device(self) -> torch.device:
        try:
            device = torch.device(self.device)
            torch.zeros(1, device=device).item()  # meta tensors have no values
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"--device {self.device} ({str(error).splitlines()[0]})",
                expected="a device that torch can use here",
                hint="pass --device cpu",
            ) from error
        return device

    def _network(self, data: LabeledData, seeds: dict[str, int], device: torch.device) -> tuple[nn.Module, str]:
        """Build the network; load its weights, or train it."""
        if self.model is None:
            model: nn.Module = standardized_mlp(
                data.x_train, data.n_classes, seed=seeds["weights"], per_feature=data.image_shape is None
            )
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seeds["weights"])
                model = build_model(self.model, input_shape=tuple(data.x_train.shape[1:]), n_classes=data.n_classes)
        self._check_model(model, data)
        if self.weights is not None:
            fit_weights(model, load_weights(self.weights), f"weights file {self.weights}")
            return model.to(device), f"trained elsewhere, weights from {self.weights.name}"
        if self.epochs < 1:
            raise InputError(f"--epochs {self.epochs}", expected="at least 1", hint="pass --epochs 80")
        started = time.perf_counter()
        with torch.random.fork_rng(devices=[]):  # dropout in the user's model draws from the global state
            torch.manual_seed(seeds["batches"])
            training = train_classifier(
                model.to(device),
                data.x_train.to(device),
                data.y_train.to(device),
                epochs=self.epochs,
                seed=seeds["batches"],
            )
        print(
            f"trained {training.steps:,} steps in {time.perf_counter() - started:.1f} s,"
            f" train accuracy {training.train_accuracy:.1%}",
            file=sys.stderr,
        )
        return model, training.recipe

    def _check_labels(self, data: LabeledData, rate: float) -> None:
        """Refuse classes without rows where they would get outputs of the default network, or labels by a flip."""
        present = torch.cat([data.y_train, data.y_test]).unique()
        if len(present) < data.n_classes and (self.model is None or rate):
            absent = next(k for k, label in enumerate([*present.tolist(), -1]) if k != label)
            raise InputError(
                f"y_train and y_test with {len(present)} classes up to {data.n_classes - 1}, but none labeled {absent}",
                expected=f"classes 0..{len(present) - 1}, without gaps",
                hint="renumber both: numpy.unique(numpy.concatenate([y_train, y_test]), return_inverse=True)[1]",
            )
        if rate and data.flipped is not None:
            raise InputError(
                f"--noise {rate:g} for data with an array `flipped`",
                expected="flips that are known, or flips made here",
                hint="leave --noise out, or `flipped` out of the .npz",
            )

    def _check_model(self, model: nn.Module, data: LabeledData) -> None:
        """Refuse a model that does not run or has another number of outputs, before time is spent on training it."""
        try:
            outputs = prepare(model, as_rows(data.x_train, "x_train"), dtype=torch.float64, evaluation=True).n_outputs
        except KernelmemError:
            raise
        except Exception as error:  # the user's forward may raise anything
            raise InputError(
                f"--model {self.model}, whose forward raised {type(error).__name__}: {error}",
                expected=f"a model that takes rows of shape {tuple(data.x_train.shape[1:])}",
                hint="try model(x) on two rows of x_train",
            ) from error
        if outputs != data.n_classes:
            raise InputError(
                f"a model with {outputs} outputs for labels 0..{data.n_classes - 1}",
                expected=f"{data.n_classes} outputs, one for each class",
                hint=f"change the factory, or let it take n_classes={data.n_classes} as an argument",
            )

    def _command(self) -> str:
        """The command line that gives this report again."""
        parts = ["kernelmem", "audit"]
        for option in ("data", "model", "weights", "noise", "noise_kind", "epochs", "seed"):
            value, default = getattr(self, option), getattr(type(self), option)
            if value != default or option == "seed":
                parts += ["--" + option.replace("_", "-"), shlex.quote(str(value))]
        return " ".join(parts)


def _npz(**arrays: torch.Tensor | None) -> bytes:
    stream = io.BytesIO()
    np.savez(
        stream, allow_pickle=False, **{name: value.cpu().numpy() for name, value in arrays.items() if value is not None}
    )
    return stream.getvalue()


class _Bars:
    """One progress bar a stage, on the terminal only."""

    def __init__(self) -> None:
        self.stage = ""
        self.bar: tqdm | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self.bar is None or self.stage != stage:
            self.close()
            self.stage, self.bar = stage, tqdm(total=total, desc=stage, file=sys.stderr, disable=None)
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
