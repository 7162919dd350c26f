"""``kernelmem audit``: train or load a network, audit it, write the report."""

import io
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from kernelmem.cli.options import DEVICE, default_hint

if TYPE_CHECKING:  # torch is slow to import, and --help does not need it
    import torch
    from torch import nn

    from kernelmem.training.datasets import LabeledData

DEFAULT_NOISE = 0.15  # for the built-in digits; labels of the user are flipped only with --noise


@dataclass(frozen=True)
class AuditCommand:
    """Audit what a network memorized. The report is DIR/audit.html, the numbers are DIR/audit.json.

    Without options, a small network is trained on scikit-learn's digits with 15 % of the training labels flipped.
    """

    data: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE.npz", help_behavior_hint=default_hint("scikit-learn's digits"))
    ] = None
    """File with arrays x_train, y_train, x_test, y_test; optional arrays: flipped, image_shape."""
    model: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="PACKAGE.MODULE:FACTORY", help_behavior_hint=default_hint("a small multilayer perceptron")
        ),
    ] = None
    """Function that returns a torch.nn.Module. Its code is executed."""
    weights: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint=default_hint("train the network"))
    ] = None
    """Trained weights: a .safetensors file, or a .pt file (loaded with weights_only=True)."""
    noise: Annotated[
        float | None,
        tyro.conf.arg(
            metavar="RATE", help_behavior_hint=default_hint("0.15 for the digits, 0 with --data or --weights")
        ),
    ] = None
    """Share of training labels, between 0 and 1, that are flipped before training."""
    noise_kind: Literal["symmetric", "uniform", "pair", "confusable", "instance"] = "symmetric"
    """Kind of label flips, see kernelmem.corrupt_labels."""
    epochs: int = 80
    """Number of passes over the training data. Ignored with --weights."""
    seed: int = 0
    """Seed of the data split, the label flips, the initial weights and the batch order."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("out/audit")
    """Directory of the report."""
    overwrite: bool = False
    """Replace an older report in the directory."""
    show_rows: bool = False
    """Include the inputs of single training rows in the report. Always on for the built-in digits."""
    device: DEVICE = "cpu"
    """Device of the network, in the notation of torch."""
    json: bool = False
    """Print audit.json instead of the summary."""

    def run(self) -> None:
        """Train or load the network, audit it, write the report and print a summary."""
        from kernelmem.auditing import AuditOptions, audit
        from kernelmem.auditing.result import check_no_report
        from kernelmem.cli.options import as_device
        from kernelmem.core.checks import seed_sequence
        from kernelmem.core.errors import printable
        from kernelmem.core.weight_files import weights_bytes
        from kernelmem.label_noise.corrupt import corrupt_labels
        from kernelmem.training.datasets import digits, read_npz

        device = as_device(self.device)
        check_no_report(self.out, overwrite=self.overwrite)  # before minutes of training, not after
        seeds = seed_sequence(self.seed, ["split", "flips", "weights", "batches"])
        data = read_npz(self.data) if self.data else digits(seed=self.seed)
        flip_rate = self._flip_rate()
        self._check_label_options(data, flip_rate)
        labels_before_flips, flip_note = data.y_train, ""
        if flip_rate:
            corrupted = corrupt_labels(
                labels_before_flips,
                flip_rate,
                self.noise_kind,
                seed=seeds["flips"],
                x=data.x_train.reshape(len(labels_before_flips), -1),
            )
            data = data.with_labels(corrupted.y, corrupted.flipped)
            flip_note = f"; {int(corrupted.flipped.sum()):,} labels flipped before training ({self.noise_kind})"
        model, training = self._build_network(data, seeds, device)
        files = {} if self.weights else {"weights.safetensors": weights_bytes(model)}
        if self.weights and self.weights.resolve().parent == self.out.resolve():
            files[self.weights.name] = self.weights.read_bytes()  # those of an older report would be removed with it
        if flip_rate:
            files["labels.npz"] = _npz_bytes(
                y_train=data.y_train, flipped=data.flipped, y_train_before=labels_before_flips
            )
        options = AuditOptions(
            name=data.name,
            model_name=self.model or "default MLP",
            image_shape=data.image_shape,
            training=training + flip_note,
            reproduce=self._command_line(),
            show_rows=self.show_rows or self.data is None,
            overwrite=self.overwrite,
            extra_files=files,
        )
        train, test = (data.x_train, data.y_train), (data.x_test, data.y_test)
        result = audit(model, train, test, flipped=data.flipped, out=self.out, seed=self.seed, options=options)
        if self.json:
            print(result.to_json(), end="")
        else:
            print(f"\n{result}\n\n  report            {printable(str((self.out / 'audit.html').resolve()))}")

    def _flip_rate(self) -> float:
        """Return the share of training labels to flip, in accordance with --noise and the other options.

        An InputError is raised if the value of --noise cannot be used.
        """
        from kernelmem.core.errors import InputError

        flip_rate = self.noise if self.noise is not None else (0.0 if self.data or self.weights else DEFAULT_NOISE)
        if not 0 <= flip_rate <= 1:
            raise InputError(
                f"--noise {flip_rate:g}", expected="a share between 0 and 1", hint="pass for example --noise 0.15"
            )
        if flip_rate and self.weights:
            raise InputError(
                f"--noise {flip_rate:g} together with --weights",
                expected="the labels that the network was trained on",
                hint="omit one of them; put flips that you know into the .npz as an array `flipped`",
            )
        return flip_rate

    def _build_network(
        self, data: "LabeledData", seeds: dict[str, int], device: "torch.device"
    ) -> tuple["nn.Module", str]:
        """Return (network, description of its training).

        The weights of the network are loaded from a file if one is given; otherwise the network is trained on ``data``
        on ``device``. ``seeds`` maps the name of a random choice to its seed.
        """
        import torch

        from kernelmem.cli.model_factory import build_model
        from kernelmem.core.errors import InputError, printable
        from kernelmem.core.weight_files import fit_weights, load_weights
        from kernelmem.training.classifier import train_classifier
        from kernelmem.training.mlp import standardized_mlp

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
            return model.to(device), f"trained elsewhere, weights from {printable(self.weights.name)}"
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

    def _check_label_options(self, data: "LabeledData", flip_rate: float) -> None:
        """Raise an InputError if the labels do not fit the options.

        Every class must have rows, unless a --model is given and no labels are flipped; flips may be given only once,
        in a file or by --noise.
        """
        import torch

        from kernelmem.core.errors import InputError

        present = torch.cat([data.y_train, data.y_test]).unique()
        if len(present) < data.n_classes and (self.model is None or flip_rate):
            first_absent = next(k for k, label in enumerate([*present.tolist(), -1]) if k != label)
            raise InputError(
                f"y_train and y_test with {len(present)} classes up to {data.n_classes - 1}, but none labeled {first_absent}",
                expected=f"classes 0..{len(present) - 1}, without gaps",
                hint="renumber both: numpy.unique(numpy.concatenate([y_train, y_test]), return_inverse=True)[1]",
            )
        if flip_rate and data.flipped is not None:
            raise InputError(
                f"--noise {flip_rate:g} together with data that contains an array `flipped`",
                expected="known flips or new flips, not both",
                hint="omit --noise, or remove `flipped` from the .npz",
            )

    def _check_model(self, model: "nn.Module", data: "LabeledData") -> None:
        """Raise an error before training if the forward pass fails or does not return one output per class."""
        import torch

        from kernelmem.core.batches import as_rows
        from kernelmem.core.errors import InputError, KernelmemError
        from kernelmem.tangents.prepare import prepare
        from kernelmem.training.losses import class_forward

        try:
            forward = class_forward() if data.n_classes == 2 else None  # which may have one logit
            rows = as_rows(data.x_train, "x_train")
            n_outputs = prepare(model, rows, forward=forward, dtype=torch.float64, evaluation=True).n_outputs
        except KernelmemError:
            raise
        except Exception as error:  # the user's forward may raise anything
            raise InputError(
                f"--model {self.model}, whose forward raised {type(error).__name__}: {error}",
                expected=f"a model that takes rows of shape {tuple(data.x_train.shape[1:])}",
                hint="try model(x) on two rows of x_train",
            ) from error
        if n_outputs != data.n_classes:
            raise InputError(
                f"a model with {n_outputs} outputs for labels 0..{data.n_classes - 1}",
                expected=f"{data.n_classes} outputs, one for each class",
                hint=f"change the factory, or let it take n_classes={data.n_classes} as an argument",
            )

    def _command_line(self) -> str:
        """Return the command line that produces this report again, with file names instead of paths.

        The directories of the user's files are not part of the report.
        """
        words = ["kernelmem", "audit"]
        for option in ("data", "model", "weights", "noise", "noise_kind", "epochs", "seed"):
            value, default = getattr(self, option), getattr(type(self), option)
            if value != default or option == "seed":
                word = _shell_word(value.name if isinstance(value, Path) else str(value))
                words += ["--" + option.replace("_", "-"), word]
        return " ".join(words)


def _shell_word(text: str) -> str:
    """Return ``text`` quoted for the shell; characters that are not printable are written as the escapes of ``$'...'``."""
    from kernelmem.core.errors import printable

    if printable(text) == text:
        return shlex.quote(text)
    quoted = "".join(
        chr(byte) if chr(byte).isascii() and chr(byte).isprintable() and byte not in b"'\\" else f"\\x{byte:02x}"
        for byte in os.fsencode(text)
    )
    return f"$'{quoted}'"


def _npz_bytes(**arrays: "torch.Tensor | None") -> bytes:
    """Return the content of an .npz file that holds the given arrays under their argument names; None is left out."""
    import numpy as np

    stream = io.BytesIO()
    np.savez(
        stream, allow_pickle=False, **{name: value.cpu().numpy() for name, value in arrays.items() if value is not None}
    )
    return stream.getvalue()
