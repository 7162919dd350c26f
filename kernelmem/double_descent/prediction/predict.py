r"""Prediction of a learning curve before training, from the NTK of the untrained network.

Training for a long time with a small learning rate, or with a ridge, turns the linearized network into f_0 + g, where g is
kernel ridge regression of y − f_0 with the network's NTK. Its expected error on held-out examples of a pool follows from the
kernel of the whole pool (:func:`kernelmem.double_descent.theory.learning_curve`), without training.

With targets Y = one_hot − 1/C, label noise that shrinks them to c Y and has variance σ², and v = c Y − f_0,

    noisy = E|f − y|² = test risk of v with noise σ²,
    clean = E|f − Y|² = noisy − σ² + (1 − c)² P + 2 (1 − c) Σ_i (1 − L_i) ⟨v_i, Y_i⟩ / (N − Σ_i L_i),     P = 1 − 1/C,

with learnabilities L_i in the eigenbasis of the kernel.

The prediction is right for wide networks and small learning rates; it neglects feature learning. Measured on digits
with 20 % wrong labels (one hidden layer of ReLU): 1 to 10 % too low for kernel machines; 3 to 10 % too low for 100
hidden units trained by gradient descent, at all sample sizes; narrow networks need ``outputs="full"``; long training by
Adam, which is not lazy, is not predicted at all (no rank correlation over widths).

Source: Simon et al. 2021 and Wei, Hu, Steinhardt 2022 for kernels; finite pools and the initial function: this package.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Batch
from kernelmem.core.checks import (
    ArrayLike,
    as_flag,
    as_labels,
    as_list,
    as_number,
    as_pair,
    as_seed,
    check_callable,
    check_choice,
    check_instance,
    check_model,
    describe,
)
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.core.options import MEMORY, Progress, as_progress
from kernelmem.double_descent.argument_checks import as_axis
from kernelmem.double_descent.prediction.untrained_network import ExpectedErrors, UntrainedNetwork
from kernelmem.double_descent.theory.kernel_ridge.spectral_task import flip_noise

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

AXES = ("width", "samples", "ridge")
Axis: TypeAlias = float | Sequence[float] | ArrayLike


@dataclass(frozen=True, eq=False)
class PredictionOptions:
    """Label noise, training and kernel of a predicted curve.

    Attributes:
        time: sum of the learning rates over the steps of gradient descent on the mean over examples of |f − y|²/2, divided
            by 1 − momentum. It replaces the ridge by the one with equal degrees of freedom
            (:func:`kernelmem.double_descent.prediction.ridge_of_time`). None: ``ridge`` is used.
        noise: fraction of wrong training labels.
        kind: "symmetric" (always a wrong label) or "uniform" noise.
        initial: True: training starts from the outputs of the untrained network; False: it starts from zero, as for a
            kernel machine.
        outputs: "trace", one kernel Σ_c K^cc / C for all outputs: right if outputs share few parameters, or the width is
            large. Outputs of a narrow network share most of its P parameters, which this counts C times: it predicts the
            threshold at P ≈ n instead of P ≈ n C. "full", all kernels between outputs, O((N C)³) time: pools of up to a
            few hundred examples.
        train: (indices, labels): indices of the pool examples that training will use, and their noisy labels, for GCV; the
            first n of them are used for n training examples. None: GCV is not computed.
    """

    time: float | None = None
    noise: float = 0.0
    kind: Literal["symmetric", "uniform"] = "symmetric"
    initial: bool = True
    outputs: Literal["trace", "full"] = "trace"
    train: tuple[ArrayLike, ArrayLike] | None = None

    def __post_init__(self) -> None:
        if self.time is not None:
            as_number(self.time, "time", exclusive=True)
        as_number(self.noise, "noise", maximum=1.0)
        check_choice(self.kind, "kind", ("symmetric", "uniform"))
        as_flag(self.initial, "initial")
        check_choice(self.outputs, "outputs", ("trace", "full"))
        if self.train is not None:
            as_pair(self.train, "train", ("indices", "labels"))


@dataclass(frozen=True, eq=False, repr=False)
class Prediction(Result):
    """Expected squared errors, summed over outputs, along one axis; float64, (A,), means over S initial networks.

    Attributes:
        axis_name: "width", "samples" or "ridge".
        axis: values of the swept quantity, (A,).
        expected: error with respect to clean labels, on examples of the pool that were not drawn for training.
        low: smallest ``expected`` over the initial networks.
        high: largest ``expected`` over the initial networks.
        noisy: error with respect to noisy labels, on the same examples as ``expected``.
        train: error with respect to the noisy labels of the training examples.
        gcv: generalized cross-validation on the given training examples, which estimates ``noisy``; or None.
        by_seed: (S, A), ``expected`` of each initial network.
        ridges: (S, A), ridge that each value was computed with.
        setting: description of the quantities that are not swept.
    """

    axis_name: str
    axis: Tensor
    expected: Tensor
    low: Tensor
    high: Tensor
    noisy: Tensor
    train: Tensor
    gcv: Tensor | None
    by_seed: Tensor
    ridges: Tensor
    setting: str

    @property
    def se(self) -> Tensor:
        """Standard error of ``expected`` over initial networks, (A,); NaN for a single one."""
        S = len(self.by_seed)
        return self.by_seed.std(0, correction=1) / S**0.5 if S > 1 else torch.full_like(self.expected, math.nan)

    @property
    def peak(self) -> float:
        """Value of the axis (a width, a number of training examples or a ridge) with the largest expected error."""
        return float(self.axis[self.expected.argmax()])

    def to_frame(self) -> "pd.DataFrame":
        """Return a table with one row per value of the axis; its columns are the errors, with GCV if it was computed."""
        import pandas as pd  # slow to import

        names = ("expected", "low", "high", "noisy", "train", *(() if self.gcv is None else ("gcv",)))
        columns = {name: getattr(self, name).numpy() for name in names}
        return pd.DataFrame(columns, index=pd.Index(self.axis.numpy(), name=self.axis_name))

    def plot(self, measured: ArrayLike | None = None) -> "Figure":
        """Return a figure of the expected error, its range over initial networks, and ``measured`` errors.

        The measured errors have shape (A,) for the A values of the axis, or (R, A) for R runs; None: none are drawn.
        """
        from kernelmem.plotting.double_descent import prediction_figure  # matplotlib is slow to import

        return prediction_figure(self, measured)

    def __str__(self) -> str:
        table = self.to_frame().to_string(float_format="{:.4g}".format, max_rows=30)
        return f"squared error expected before training: {self.setting}\n{table}"


def predict_curve(
    make_model: Callable[..., nn.Module],
    data: tuple[Batch, ArrayLike],
    *,
    widths: Axis,
    samples: Axis,
    ridge: Axis = 0.0,
    seeds: Sequence[int] = (0, 1, 2),
    options: PredictionOptions = PredictionOptions(),
    forward: Callable[..., Tensor] | None = None,
    memory: int | str = MEMORY,
    progress: Progress = None,
) -> Prediction:
    """Predict the error of networks trained with squared loss, from their NTKs before training.

    One of ``widths``, ``samples`` and ``ridge`` is a sequence: the axis.

    Args:
        make_model: ``make_model(width)`` returns an untrained network; it is called once for each width and seed, with
            torch's random state forked and seeded, as by :func:`kernelmem.training.ensemble.train_modules`.
        data: (x, y), the pool: N examples and their clean labels 0..C-1, (N,), C the number of outputs. Training examples
            are drawn from it, and errors are those on the other examples.
        widths: a width or a list of widths.
        samples: number n < N of training examples, or an increasing list of numbers.
        ridge: number >= 0 added to the diagonal of the kernel Σ_c K^cc / C of the training examples, or an increasing list.
        seeds: seeds of the initial networks.
        options: label noise, training time, kernel, GCV, see :class:`PredictionOptions`.
        forward: maps (model, batch) to (N, C) outputs.
        memory: bytes that the computation of the NTK may allocate.
        progress: called with (networks done, networks in total).

    Returns:
        Prediction, float64.

    Raises:
        InputError: there is no axis or more than one, an argument is out of range, a label exceeds the number of outputs,
            or both a ridge and a time are given.
        UnsupportedModelError: for the same models as :func:`kernelmem.ntk`.

    Cost: per width and seed the NTK of N examples and its eigendecomposition, O(N³); with ``time`` one of n examples per
    value. Digits (N = 1,797) with 100 units: about 4 s.

    Source: Simon et al. 2021 for kernels of a population; for a finite pool and an initial function: this package.
    """
    check_callable(make_model, "make_model", ("width",), types=True)
    check_instance(options, "options", PredictionOptions)
    axes = _Axes.parse(widths, samples, ridge, options.time)
    seeds = [as_seed(seed) for seed in as_list(seeds, "seeds")]
    if len(seeds) == 0 or len(set(seeds)) != len(seeds):
        raise InputError(
            f"seeds {describe(seeds)}", expected="at least one seed, no repeats", hint="pass seeds=(0, 1, 2)"
        )
    x, y = as_pair(data, "data")
    labels = as_labels(y, "y")
    report, total = as_progress(progress, "prediction", "network"), len(seeds) * len(axes.widths)
    errors_by_seed: list[list[ExpectedErrors]] = []
    for s, seed in enumerate(seeds):
        errors_of_seed: list[ExpectedErrors] = []
        for w, width in enumerate(axes.widths):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = make_model(width)
            check_model(model, "make_model(width)")
            model.eval()
            network = UntrainedNetwork.compute(model, x, labels, options.initial, forward, memory, options.outputs)
            flip_moments = flip_noise(options.noise, network.centered_one_hot.shape[1], kind=options.kind)
            training_labels = (
                None if options.train is None else _as_training_labels(options.train, network, max(axes.samples))
            )
            errors_of_seed += [
                network.expected_errors(n, ridge_value, options.time, flip_moments, training_labels, seed)
                for n in axes.samples
                for ridge_value in axes.ridges
            ]
            report(s * len(axes.widths) + w + 1, total)
        errors_by_seed.append(errors_of_seed)

    def stack_errors(name: str) -> Tensor:  # (S, A)
        return torch.tensor([[getattr(errors, name) for errors in row] for row in errors_by_seed], dtype=torch.float64)

    clean_errors = stack_errors("clean")
    return Prediction(
        axis_name=axes.name,
        axis=torch.tensor(axes.axis, dtype=torch.float64),
        expected=clean_errors.mean(0),
        low=clean_errors.amin(0),
        high=clean_errors.amax(0),
        noisy=stack_errors("noisy").mean(0),
        train=stack_errors("train").mean(0),
        gcv=None if options.train is None else stack_errors("gcv").mean(0),
        by_seed=clean_errors,
        ridges=stack_errors("ridge"),
        setting=axes.describe_fixed(options.time)
        + f", {options.noise:.0%} {options.kind} label noise, {len(seeds)} initial network{'s' * (len(seeds) != 1)}",
    )


@dataclass(frozen=True)
class _Axes:
    """Swept values: widths, numbers of training examples and ridges. ``name`` ("width", "samples", "ridge") is the axis."""

    widths: list[int]
    samples: list[int]
    ridges: list[float]
    name: str

    @classmethod
    def parse(cls, widths: Axis, samples: Axis, ridge: Axis, time: float | None) -> "_Axes":
        """Validate widths, numbers of training examples and ridges and return them; the one that is a list is the axis.

        Raises:
            InputError: not exactly one of them is a list, a value is out of range, or a ridge and a time are both given.
        """
        is_list = [
            isinstance(value, Sequence | Tensor) or hasattr(value, "__array__") for value in (widths, samples, ridge)
        ]
        if sum(is_list) != 1:
            raise InputError(
                f"{sum(is_list)} lists among widths, samples and ridge",
                expected="exactly one, the axis",
                hint="pass e.g. widths=[8, 16, 32], samples=400",
            )
        if time is not None and (is_list[2] or ridge != 0.0):
            raise InputError(
                f"ridge={ridge!r} and time={time!r}",
                expected="a ridge or a training time, not both",
                hint="omit ridge or time",
            )
        return cls(
            as_axis(widths, "widths", integer=True).astype(int).tolist(),
            as_axis(samples, "samples", integer=True).astype(int).tolist(),
            as_axis(ridge, "ridge", exclusive=False).tolist(),
            AXES[is_list.index(True)],
        )

    @property
    def axis(self) -> list[int] | list[float]:
        """List of the values of the swept quantity, which ``name`` selects."""
        return {"width": self.widths, "samples": self.samples, "ridge": self.ridges}[self.name]

    def describe_fixed(self, time: float | None) -> str:
        """Return text with the values of the quantities that are not swept; ``time`` replaces the ridge if given."""
        descriptions = {
            "width": f"width {self.widths[0]}",
            "samples": f"{self.samples[0]} training examples",
            "ridge": f"ridge {self.ridges[0]:g}" if time is None else f"gradient flow for time {time:g}",
        }
        return ", ".join(text for name, text in descriptions.items() if name != self.name)


def _as_training_labels(
    train: tuple[ArrayLike, ArrayLike], network: UntrainedNetwork, largest_n: int
) -> tuple[Tensor, Tensor]:
    """Validate ``train`` = (indices, labels) of training examples in the pool, and return both, int64 of equal length.

    Raises:
        InputError: an index or label is out of range, an index is repeated, or there are fewer than ``largest_n`` indices.
    """
    N, C = network.centered_one_hot.shape
    if not isinstance(train, tuple | list) or len(train) != 2:
        raise InputError(
            f"train of type {type(train).__name__}",
            expected="(indices, labels)",
            hint="pass the indices of the training examples and their labels",
        )
    indices = as_labels(train[0], "train[0]", n_classes=N).cpu()
    labels = as_labels(train[1], "train[1]", n=len(indices), n_classes=C).cpu()
    if len(indices) < largest_n or len(indices.unique()) != len(indices):
        raise InputError(
            f"train with {len(indices)} indices, {len(indices.unique())} of them different",
            expected=f"at least {largest_n} indices (the largest number of samples) without repeats",
            hint="pass the examples of the largest number of samples, in the order in which smaller ones use them",
        )
    return indices, labels
