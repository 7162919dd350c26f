"""``kernelmem audit``: train or load a network, audit it, write the report."""

import io
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from kernelmem.cli.options import DEVICE, check_report_directory, command_line, default_hint

if TYPE_CHECKING:  # torch is slow to import, and --help does not need it
    import torch
    from torch import nn

    from kernelmem.cli.audit.inputs import AuditedData, NetworkSource

DEFAULT_NOISE = 0.15  # for the built-in digits; labels of the user are flipped only with --noise
DEFAULT_MODELS = 48  # trained on subsets if neither --budget nor anything else says otherwise
VERIFICATIONS = 48  # trainings that verify single rows
LONGEST_DEFAULT = 120.0  # estimated seconds above which retraining needs --budget


@dataclass(frozen=True)
class AuditCommand:
    """Audit what a network memorized. The report is DIR/audit.html, the numbers are DIR/audit.json and DIR/rows.csv.

    Without options, a small network is trained on scikit-learn's digits with 15 % of the training labels flipped.
    """

    data: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE.npz", help_behavior_hint=default_hint("scikit-learn's digits"))
    ] = None
    """File with arrays x_train, y_train, x_test, y_test; optional arrays: flipped, image_shape, class_names,
    feature_names, groups (of the training rows). Labels are class indices from 0 or 1, or text."""
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
    weights_key: Annotated[
        str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint=default_hint("the file is the state dict"))
    ] = None
    """Entry of the weights file that holds the state dict, e.g. model, or state.model for nested entries."""
    noise: Annotated[
        float | None,
        tyro.conf.arg(
            metavar="RATE", help_behavior_hint=default_hint("0.15 for the digits, 0 with --data or --weights")
        ),
    ] = None
    """Share of training labels, between 0 and 1, that are flipped before training."""
    noise_kind: Literal["symmetric", "uniform", "pair", "confusable", "instance"] = "symmetric"
    """Kind of label flips, see kernelmem.corrupt_labels."""
    epochs: int = 40
    """Number of passes over the training data. Ignored with --weights."""
    budget: Annotated[
        float | None,
        tyro.conf.arg(
            metavar="MINUTES",
            help_behavior_hint=default_hint("48 models if they take less than 2 minutes, 0 with --weights"),
        ),
    ] = None
    """Minutes for training further networks on parts of the rows, which measures memorization directly; 0: no
    retraining, the network's kernel is used instead."""
    seed: int = 0
    """Seed of the data split, the label flips, the initial weights and the batch order."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("out/audit")
    """Directory of the report."""
    overwrite: bool = False
    """Replace an older report in the directory."""
    show_rows: bool = False
    """Include the inputs of the listed training rows in the report. Always on for the built-in digits."""
    redact: bool = False
    """Leave out labels and predictions of single rows as well: rows appear by their index only."""
    auditor: str = ""
    """Person or organization that runs the audit, for the report."""
    purpose: str = ""
    """Reason for the audit, for the report."""
    device: DEVICE = "cpu"
    """Device of the network, in the notation of torch."""
    json: bool = False
    """Print audit.json instead of the summary."""

    def run(self) -> None:
        """Train or load the network, audit it, write the report and print a summary; the default network on one thread."""
        from contextlib import nullcontext

        from kernelmem.core.tasks import one_thread

        with one_thread() if self.model is None else nullcontext():
            self._run()

    def _run(self) -> None:
        from kernelmem.auditing import AuditOptions, audit
        from kernelmem.cli.audit.inputs import NetworkSource, check_classes, read_audit_data
        from kernelmem.cli.options import as_device
        from kernelmem.core.checks import seed_sequence
        from kernelmem.core.errors import printable
        from kernelmem.core.files.weight_files import weights_bytes

        device = as_device(self.device)
        self._check_options()  # before minutes of training, not after
        seeds = seed_sequence(self.seed, ["split", "flips", "weights", "batches"])
        flip_rate = self._flip_rate()
        audited = read_audit_data(self.data, self.seed)
        if self.model is None or flip_rate:
            check_classes(audited, all_present=bool(flip_rate))
        audited, files, flip_note = self._flip_labels(audited, flip_rate, seeds["flips"])
        source = NetworkSource(audited, self.model, self.epochs, device)
        model = source.build(seeds["weights"])
        n_outputs = source.check(model, may_be_larger=self.weights is not None)
        if n_outputs != audited.n_classes:
            audited = read_audit_data(self.data, self.seed, n_outputs)  # classes without rows
        if self.weights is None:
            training, retraining = self._train(source, model, seeds["batches"])
            files["weights.safetensors"] = weights_bytes(model)
        else:
            training, retraining = self._load(model.to(device), files), {}
        data = audited.data
        options = AuditOptions(
            name=data.name,
            model_name=self.model or "default MLP",
            class_names=audited.class_names,
            feature_names=audited.feature_names,
            groups=audited.groups,
            image_shape=data.image_shape,
            training="; ".join(filter(None, (training, flip_note, audited.label_note))),
            reproduce=self._command_line(),
            auditor=self.auditor,
            purpose=self.purpose,
            show_rows=self.show_rows or (self.data is None and not self.redact),
            redact=self.redact,
            overwrite=self.overwrite,
            extra_files=files,
            **retraining,
        )
        train, test = (data.x_train, data.y_train), (data.x_test, data.y_test)
        result = audit(model, train, test, flipped=data.flipped, out=self.out, seed=self.seed, options=options)
        if self.json:
            print(result.to_json(), end="")
        else:
            print(f"\n{result}\n\n  report            {printable(str((self.out / 'audit.html').resolve()))}")

    def _check_options(self) -> None:
        """Raise an InputError for options that contradict each other, and for a directory that cannot be written to."""
        from kernelmem.core.checks import as_number
        from kernelmem.core.errors import InputError

        if self.epochs < 1:
            raise InputError(f"--epochs {self.epochs}", expected="at least 1", hint="pass --epochs 40")
        if self.redact and self.show_rows:
            raise InputError("--redact together with --show-rows", expected="one of them", hint="omit one of them")
        if self.weights_key is not None and self.weights is None:
            raise InputError(
                f"--weights-key {self.weights_key} without --weights", expected="both", hint="pass --weights FILE"
            )
        if self.budget is not None:
            as_number(self.budget, "budget")
        if self.budget and self.weights:
            raise InputError(
                f"--budget {self.budget:g} together with --weights",
                expected="a network whose training can be repeated",
                hint="omit --budget, or repeat your own training: km.audit with km.AuditOptions(retrain=function)",
            )
        check_report_directory(self.out, overwrite=self.overwrite)

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

    def _flip_labels(
        self, audited: "AuditedData", flip_rate: float, seed: int
    ) -> tuple["AuditedData", dict[str, bytes], str]:
        """Return the data with flipped labels, the file that holds the labels (unless redacted), and a note."""
        from kernelmem.core.errors import InputError
        from kernelmem.label_noise.corrupt import corrupt_labels

        if not flip_rate:
            return audited, {}, ""
        data = audited.data
        if data.flipped is not None:
            raise InputError(
                f"--noise {flip_rate:g} together with data that contains an array `flipped`",
                expected="known flips or new flips, not both",
                hint="omit --noise, or remove `flipped` from the .npz",
            )
        x = data.x_train.reshape(len(data.y_train), -1)
        corrupted = corrupt_labels(data.y_train, flip_rate, self.noise_kind, seed=seed, x=x)
        content = _npz_bytes(y_train=corrupted.y, flipped=corrupted.flipped, y_train_before=data.y_train)
        note = f"{int(corrupted.flipped.sum()):,} labels flipped before training ({self.noise_kind})"
        flipped = replace(audited, data=data.with_labels(corrupted.y, corrupted.flipped))
        return flipped, {} if self.redact else {"labels.npz": content}, note

    def _train(self, source: "NetworkSource", model: "nn.Module", seed: int) -> tuple[str, dict[str, Any]]:
        """Train the network; return a description of the training, and the options of AuditOptions for retraining."""
        from kernelmem.cli.audit.inputs import timed_training

        training, seconds = timed_training(source, model, seed)
        print(
            f"trained {training.steps:,} steps in {seconds:.1f} s, train accuracy {training.train_accuracy:.1%}",
            file=sys.stderr,
        )
        if self.budget == 0:
            return training.recipe, {}
        if self.budget is not None:
            return training.recipe, {"retrain": source.retraining(), "budget": self.budget}
        estimate = (DEFAULT_MODELS + VERIFICATIONS) * seconds
        if self.data is not None and estimate > LONGEST_DEFAULT:
            print(
                f"no retraining, which would take about {estimate / 60:.0f} minutes; --budget MINUTES allows it",
                file=sys.stderr,
            )
            return training.recipe, {}
        return training.recipe, {"retrain": source.retraining(), "n_models": DEFAULT_MODELS}

    def _load(self, model: "nn.Module", files: dict[str, bytes]) -> str:
        """Load the weights into the model, keep those of an older report, and return a description of the training."""
        from kernelmem.core.errors import printable
        from kernelmem.core.files.weight_files import fit_weights, load_weights, without_prefix

        assert self.weights is not None
        state = without_prefix(load_weights(self.weights, key=self.weights_key), model)
        fit_weights(model, state, f"weights file {self.weights}")
        if self.weights.resolve().parent == self.out.resolve():
            files[self.weights.name] = self.weights.read_bytes()  # it would be removed with the older report
        return f"trained elsewhere, weights from {printable(self.weights.name)}"

    def _command_line(self) -> str:
        """Return the command line that produces this report again, with file names instead of paths.

        The directories of the user's files are not part of the report.
        """
        options = (
            "data", "model", "weights", "weights_key", "noise", "noise_kind", "epochs", "budget", "seed", "auditor", "purpose",
        )  # fmt: skip
        return command_line(self, "kernelmem audit", options, flags=("show_rows", "redact"))


def _npz_bytes(**arrays: "torch.Tensor | None") -> bytes:
    """Return the content of an .npz file that holds the given arrays under their argument names; None is left out."""
    import numpy as np

    stream = io.BytesIO()
    np.savez(
        stream, allow_pickle=False, **{name: value.cpu().numpy() for name, value in arrays.items() if value is not None}
    )
    return stream.getvalue()
