r"""A learning curve predicted before training, from the tangent kernel that a network has when it is made.

Training for long with a small learning rate, or with a ridge, makes of the linearized network f_0 + g, g the kernel ridge
regression of y − f_0 with the network's tangent kernel. Its expected error on rows of a pool that were held out follows from
the kernel of all rows of the pool (:func:`kernelmem.double_descent.theory.kernel_ridge.curves.learning_curve`): no training, no held-out error.

With targets Y = one_hot − 1/C, flips that shrink them to c Y and have variance σ², and v = c Y − f_0,

    noisy = E|f − y|² = test risk of v with noise σ²,
    clean = E|f − Y|² = noisy − σ² + (1 − c)² P + 2 (1 − c) Σ_i (1 − L_i) ⟨v_i, Y_i⟩ / (N − Σ_i L_i),     P = 1 − 1/C.

It is right for wide networks at small learning rates; it leaves out that trained networks learn features. Measured on digits
with 20 % flips (one hidden layer of relu): for kernel machines 1 to 10 % too low; for 100 units trained by gradient descent 3
to 10 % too low at all sample sizes; narrow networks are another matter (see ``outputs``), and long training by Adam, which
is not lazy, is not predicted at all (no rank correlation over widths).

Source: Simon et al. 2021 and Wei, Hu, Steinhardt 2022 for kernels; pools and the initial function: here.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from kernelmem.core.checks import as_count, as_labels, as_number
from kernelmem.core.errors import InputError
from kernelmem.core.result_files import Result
from kernelmem.double_descent.argument_checks import as_axis
from kernelmem.double_descent.prediction.untrained_network import Expected, PoolNetwork
from kernelmem.double_descent.theory.kernel_ridge.spectral_task import FlipNoise, flip_noise

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

__all__ = ["Prediction", "predict_curve"]

AXES = ("width", "samples", "ridge")


@dataclass(frozen=True, eq=False, repr=False)
class Prediction(Result):
    """Expected mean squared errors, summed over outputs, along one axis; float64, (A,), means over S initial networks.

    Attributes:
        axis_name: "width", "samples" or "ridge".
        axis: what varies.
        expected: against clean labels, on rows of the pool that were held out.
        low: the least of the initial networks.
        high: the largest of them.
        noisy: against noisy labels.
        train: against the noisy labels of the training rows.
        gcv: generalized cross-validation on the training rows that were given, which estimates ``noisy``; None without.
        by_seed: (S, A), ``expected`` of each.
        ridges: (S, A), the ridge that was used.
        setting: the rest, in words.
    """

    axis_name: str
    axis: Tensor
    expected: Tensor = field(repr=False)
    low: Tensor = field(repr=False)
    high: Tensor = field(repr=False)
    noisy: Tensor = field(repr=False)
    train: Tensor = field(repr=False)
    gcv: Tensor | None = field(repr=False)
    by_seed: Tensor = field(repr=False)
    ridges: Tensor = field(repr=False)
    setting: str

    @property
    def se(self) -> Tensor:
        """Standard error of ``expected`` over initial networks, (A,); NaN for a single one."""
        S = len(self.by_seed)
        return self.by_seed.std(0, correction=1) / S**0.5 if S > 1 else torch.full_like(self.expected, math.nan)

    @property
    def peak(self) -> float:
        """Where on the axis the largest error is expected."""
        return float(self.axis[self.expected.argmax()])

    def to_frame(self) -> "pandas.DataFrame":
        """One line a place."""
        import pandas  # slow to import

        names = ("expected", "low", "high", "noisy", "train", *(() if self.gcv is None else ("gcv",)))
        columns = {name: getattr(self, name).numpy() for name in names}
        return pandas.DataFrame(columns, index=pandas.Index(self.axis.numpy(), name=self.axis_name))

    def plot(self, measured: Any = None) -> "Figure":
        """Expected error along the axis, the range over initial networks, and what was measured, (A,) or (runs, A)."""
        from kernelmem.plotting.prediction import prediction_figure  # matplotlib is slow to import

        return prediction_figure(self, measured)

    def __str__(self) -> str:
        return f"expected before training: {self.setting}\n{self.to_frame().to_string(float_format='{:.4g}'.format)}"


def predict_curve(
    make_model: Callable[[Any], nn.Module],
    x_pool: Any,
    y_pool: Any,
    *,
    widths: Any,
    samples: Any,
    ridge: Any = 0.0,
    time: float | None = None,
    noise: float = 0.0,
    kind: Any = "symmetric",
    seeds: Sequence[int] = (0, 1, 2),
    initial: bool = True,
    outputs: Literal["trace", "full"] = "trace",
    train: tuple[Any, Any] | None = None,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    memory: int | str = "4GiB",
    progress: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Predict the error of networks trained with squared loss, from their tangent kernels before training.

    One of ``widths``, ``samples`` and ``ridge`` is a sequence: the axis.

    Args:
        make_model: ``make_model(width)`` gives an untrained network; it is called once for each width and seed, with
            torch's random state forked and seeded, as :func:`kernelmem.training.ensemble.train.train_modules` does.
        x_pool: N rows; training rows are drawn from them, and errors are of the rows that are not drawn.
        y_pool: (N,) clean labels 0..C-1, C the number of outputs.
        widths: a width or a list of them.
        samples: n < N training rows, or an increasing list.
        ridge: added to the kernel of the training rows, Σ_c K^cc / C; a number >= 0 or an increasing list.
        time: Σ_t of the learning rates of training by gradient descent on the mean over rows of |f − y|²/2 (over
            1 − momentum): in place of a ridge, the ridge of as many degrees of freedom
            (:func:`kernelmem.double_descent.prediction.untrained_network.ridge_of_time`).
        noise: rate of flipped training labels.
        kind: "symmetric" flips (always a wrong label) or "uniform" ones.
        seeds: of initial networks.
        initial: whether the machine starts from the network's own outputs; False: from zero, a pure kernel machine.
        outputs: "trace", one kernel Σ_c K^cc / C for all outputs: right where they share few weights, or width is large.
            Outputs of a narrow network share most of its P weights, which this counts C times: it expects the threshold at
            P ≈ n in place of P ≈ n C. "full", all kernels between outputs, (N C)³ in time: of pools up to some hundreds.
        train: (rows, labels): rows of the pool that training will use, and their noisy labels, for GCV beside the
            prediction; at n samples the first n of them.
        forward: maps (model, batch) to (N, C) outputs.
        memory: bytes for the tangent kernel's computation.
        progress: called with (networks done, networks in all).

    Returns:
        Prediction: float64.

    Raises:
        InputError: no axis or more than one, arguments out of range, labels beyond the outputs, both a ridge and a time.
        UnsupportedModelError: as :func:`kernelmem.ntk`.

    Cost: for each width and seed the tangent kernel of N rows and its eigendecomposition, O(N³); with ``time`` one of n rows
    for each place. Digits (N = 1,797) with 100 units: about 4 s.

    Source: Simon et al. 2021 for kernels of a population; here of a pool, with the network's own initial function.
    """
    place = _Place.of(widths, samples, ridge, time)
    if len(seeds) == 0 or len(set(seeds)) != len(seeds):
        raise InputError(f"seeds {list(seeds)}", expected="at least one, none twice", hint="pass seeds=(0, 1, 2)")
    if outputs not in ("trace", "full"):
        raise InputError(f"outputs={outputs!r}", expected='"trace" or "full"', hint='pass outputs="trace"')
    labels = as_labels(y_pool, "y_pool")
    found: list[list[Expected]] = []
    total, done = len(seeds) * len(place.widths), 0
    flips = FlipNoise(1.0, 0.0)
    for seed in seeds:
        whole = as_count(seed, "seed", minimum=0)
        own: list[Expected] = []
        for width in place.widths:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(whole)
                model = make_model(width)
            if not isinstance(model, nn.Module):
                raise InputError(
                    f"make_model that gives a {type(model).__name__}", expected="a module", hint="return it"
                )
            model.eval()
            pool = PoolNetwork.of(model, x_pool, labels, initial, forward, memory, outputs)
            flips = flip_noise(noise, pool.clean.shape[1], kind=kind)
            rows = None if train is None else _checked_train(train, pool, max(place.samples))
            own += [pool.expect(n, delta, time, flips, rows, whole) for n in place.samples for delta in place.ridges]
            done += 1
            if progress is not None:
                progress(done, total)
        found.append(own)

    def column(name: str) -> Tensor:
        return torch.tensor([[getattr(one, name) for one in own] for own in found], dtype=torch.float64)

    clean = column("clean")
    return Prediction(
        axis_name=place.name,
        axis=torch.tensor(place.axis, dtype=torch.float64),
        expected=clean.mean(0),
        low=clean.amin(0),
        high=clean.amax(0),
        noisy=column("noisy").mean(0),
        train=column("train").mean(0),
        gcv=None if train is None else column("gcv").mean(0),
        by_seed=clean,
        ridges=column("ridge"),
        setting=place.words(time)
        + f", {noise:.0%} {kind} flips, {len(seeds)} initial network{'s' * (len(seeds) != 1)}",
    )


@dataclass(frozen=True)
class _Place:
    """The three axes, of which one has several values."""

    widths: list[Any]
    samples: list[int]
    ridges: list[float]
    name: str

    @classmethod
    def of(cls, widths: Any, samples: Any, ridge: Any, time: float | None) -> "_Place":
        several = [isinstance(own, Sequence | Tensor) or hasattr(own, "__array__") for own in (widths, samples, ridge)]
        if sum(several) != 1:
            raise InputError(
                f"{sum(several)} lists among widths, samples and ridge",
                expected="exactly one, the axis",
                hint="pass e.g. widths=[8, 16, 32], samples=400",
            )
        if time is not None:
            as_number(time, "time", exclusive=True)
            if several[2] or ridge != 0.0:
                raise InputError(f"ridge={ridge!r} and time={time!r}", expected="one of them", hint="leave one out")
        name = AXES[several.index(True)]
        whole = as_axis(widths, "widths", whole=True).astype(int).tolist()
        ns = as_axis(samples, "samples", whole=True).astype(int).tolist()
        deltas = as_axis(ridge, "ridge", exclusive=False).tolist()
        return cls(whole, ns, deltas, name)

    @property
    def axis(self) -> list[Any]:
        return {"width": self.widths, "samples": self.samples, "ridge": self.ridges}[self.name]

    def words(self, time: float | None) -> str:
        parts = {
            "width": f"width {self.widths[0]}",
            "samples": f"{self.samples[0]} training rows",
            "ridge": f"ridge {self.ridges[0]:g}" if time is None else f"gradient flow of time {time:g}",
        }
        return ", ".join(text for name, text in parts.items() if name != self.name)


def _checked_train(train: Any, pool: PoolNetwork, most: int) -> tuple[Tensor, Tensor]:
    N, C = pool.clean.shape
    if not isinstance(train, tuple | list) or len(train) != 2:
        raise InputError(f"train of type {type(train).__name__}", expected="(rows, labels)", hint="pass both")
    rows = as_labels(train[0], "train[0]", n_classes=N).cpu()
    labels = as_labels(train[1], "train[1]", n=len(rows), n_classes=C).cpu()
    if len(rows) < most or len(rows.unique()) != len(rows):
        raise InputError(
            f"{len(rows)} training rows, {len(rows.unique())} different ones",
            expected=f"at least {most}, none twice",
            hint="pass the rows of the largest number of samples, in the order in which smaller ones use them",
        )
    return rows, labels
