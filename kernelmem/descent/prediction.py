r"""A learning curve predicted before training, from the tangent kernel that a network has when it is made.

Training for long with a small learning rate, or with a ridge, makes of the linearized network f_0 + g, g the kernel ridge
regression of y − f_0 with the network's tangent kernel. Its expected error on rows of a pool that were held out follows from
the kernel of all rows of the pool (:func:`kernelmem.descent.eigenlearning.learning_curve`): no training, no held-out error.

With targets Y = one_hot − 1/C, flips that shrink them to c Y and have variance σ², and v = c Y − f_0,

    noisy = E|f − y|² = test risk of v with noise σ²,
    clean = E|f − Y|² = noisy − σ² + (1 − c)² P + 2 (1 − c) Σ_i (1 − L_i) ⟨v_i, Y_i⟩ / (N − Σ_i L_i),     P = 1 − 1/C.

It is right for wide networks at small learning rates; of trained networks it leaves out that they learn features.

Source: Simon et al. 2021 and Wei, Hu, Steinhardt 2022 for kernels; pools and the initial function: here.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kernelmem.descent.arguments import as_axis, as_number, as_whole
from kernelmem.descent.eigenlearning import learnabilities, learning_curve
from kernelmem.descent.task import FlipNoise, Task, flip_noise
from kernelmem.ground.batches import as_rows
from kernelmem.ground.checks import as_labels
from kernelmem.ground.errors import InputError
from kernelmem.kernels.ntk import ntk
from kernelmem.store.results import read_value, write_value
from kernelmem.tangents.prepare import prepare

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

__all__ = ["Prediction", "predict_curve", "ridge_of_time"]

EPS = torch.finfo(torch.float64).eps
KIND = "prediction 1"
AXES = ("width", "samples", "ridge")


@dataclass(frozen=True, eq=False)
class Prediction:
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
        from kernelmem.descent.prediction_picture import prediction_figure  # matplotlib is slow to import

        return prediction_figure(self, measured)

    def save(self, path: str | Path) -> Path:
        """Write everything to a .safetensors file, with a hash."""
        return write_value(path, KIND, self)

    @classmethod
    def load(cls, path: str | Path) -> "Prediction":
        """Read what :meth:`save` wrote.

        Raises:
            FileCorruptError: missing, truncated, altered, or something else.
        """
        return read_value(path, KIND, cls)

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
    train: tuple[Any, Any] | None = None,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    memory: int | str = "4GiB",
    progress: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Predict the error of networks trained with squared loss, from their tangent kernels before training.

    One of ``widths``, ``samples`` and ``ridge`` is a sequence: the axis.

    Args:
        make_model: ``make_model(width)`` gives an untrained network; it is called once for each width and seed, with
            torch's random state forked and seeded, as :func:`kernelmem.runs.ensemble.train_modules` does.
        x_pool: N rows; training rows are drawn from them, and errors are of the rows that are not drawn.
        y_pool: (N,) clean labels 0..C-1, C the number of outputs.
        widths: a width or a list of them.
        samples: n < N training rows, or an increasing list.
        ridge: added to the kernel of the training rows, Σ_c K^cc / C; a number >= 0 or an increasing list.
        time: Σ_t of the learning rates of training by gradient descent on the mean over rows of |f − y|²/2 (over
            1 − momentum): in place of a ridge, the ridge of as many degrees of freedom (:func:`ridge_of_time`).
        noise: rate of flipped training labels.
        kind: "symmetric" flips (always a wrong label) or "uniform" ones.
        seeds: of initial networks.
        initial: whether the machine starts from the network's own outputs; False: from zero, a pure kernel machine.
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
        raise InputError(f"seeds {list(seeds)}", expected="at least one, none twice", do="pass seeds=(0, 1, 2)")
    labels = as_labels(y_pool, "y_pool")
    found: list[list[_Expected]] = []
    total, done = len(seeds) * len(place.widths), 0
    flips = FlipNoise(1.0, 0.0)
    for seed in seeds:
        whole = as_whole(seed, "seed", least=0)
        own: list[_Expected] = []
        for width in place.widths:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(whole)
                model = make_model(width)
            if not isinstance(model, nn.Module):
                raise InputError(f"make_model that gives a {type(model).__name__}", expected="a module", do="return it")
            model.eval()
            pool = _Pool.of(model, x_pool, labels, initial, forward, memory)
            flips = flip_noise(noise, pool.clean.shape[1], kind)
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
        setting=place.words(time) + f", {noise:.0%} {kind} flips, {len(seeds)} initial network{'s' * (len(seeds) != 1)}",
    )


def ridge_of_time(values: Any, time: float) -> float:
    r"""Find the ridge δ of as many degrees of freedom as gradient flow: Σ κ_i/(κ_i + δ) = Σ (1 − exp(−t κ_i / n)).

    Flow of time t on the mean over n rows of |f − y|²/2 learns the share 1 − exp(−t κ_i/n) of eigendirection i, a ridge
    κ_i/(κ_i + δ): the two shrink alike, but not equally, so that this is an approximation (of the same order δ ≈ n/t).

    Args:
        values: (n,) eigenvalues of the training rows' kernel.
        time: > 0.

    Returns:
        The ridge; the two counts agree to rounding.

    Raises:
        InputError: a time that is not positive, no positive eigenvalue.

    Source: Ali, Kolter and Tibshirani 2019 relate the two; matched degrees of freedom: here.
    """
    kappa = torch.as_tensor(values, dtype=torch.float64).clamp_min(0)
    time = as_number(time, "time", open_end=True)
    if kappa.ndim != 1 or not len(kappa) or float(kappa.max()) == 0:
        raise InputError("eigenvalues of which none is positive", expected="those of a kernel", do="check the kernel")
    wanted = float(-torch.expm1(-time * kappa / len(kappa)).sum())
    # 1 − exp(−u) is between u/(1 + u) and 2 u/(2 + u) for small u and below 1: the root is within this range.
    low, high = math.log(EPS * float(kappa.max())), math.log(2 * len(kappa) / time + float(kappa.sum()))
    for _ in range(100):
        middle = (low + high) / 2
        if float((kappa / (kappa + math.exp(middle))).sum()) > wanted:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


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
                do="pass e.g. widths=[8, 16, 32], samples=400",
            )
        if time is not None:
            as_number(time, "time", open_end=True)
            if several[2] or ridge != 0.0:
                raise InputError(f"ridge={ridge!r} and time={time!r}", expected="one of them", do="leave one out")
        name = AXES[several.index(True)]
        whole = as_axis(widths, "widths", whole=True).astype(int).tolist()
        ns = as_axis(samples, "samples", whole=True).astype(int).tolist()
        deltas = as_axis(ridge, "ridge", open_end=False).tolist()
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


@dataclass(frozen=True)
class _Expected:
    clean: float
    noisy: float
    train: float
    gcv: float
    ridge: float


@dataclass(frozen=True, eq=False)
class _Pool:
    """One network on the pool: its kernel, with eigenvectors, and what it gives before training."""

    kernel: Tensor  # (N, N)
    values: Tensor  # (N,)
    vectors: Tensor  # (N, N)
    clean: Tensor  # (N, C): one_hot - 1/C
    start: Tensor  # (N, C): f_0, or zeros

    @classmethod
    def of(
        cls,
        model: nn.Module,
        x: Any,
        labels: Tensor,
        initial: bool,
        forward: Callable[[nn.Module, Any], Tensor] | None,
        memory: int | str,
    ) -> "_Pool":
        start = _outputs(model, x, forward)
        N, C = start.shape
        if len(labels) != N or int(labels.max()) >= C:
            raise InputError(
                f"{len(labels)} labels up to {int(labels.max())} for outputs of shape {(N, C)}",
                expected=f"{N} labels 0..{C - 1}",
                do="pair every row of the pool with its label, and give the network an output for each class",
            )
        kernel = ntk(model, x, outputs="trace", dtype=torch.float64, forward=forward, memory=memory).cpu() / C
        values, vectors = torch.linalg.eigh(kernel)
        # The rank of few parameters is below N: what rounding leaves there is none.
        values = torch.where(values > N * EPS * values[-1], values, 0.0)
        clean = torch.nn.functional.one_hot(labels.cpu(), C).double() - 1 / C
        return cls(kernel, values, vectors, clean, start if initial else torch.zeros_like(start))

    def expect(
        self,
        n: int,
        ridge: float,
        time: float | None,
        flips: FlipNoise,
        train: tuple[Tensor, Tensor] | None,
        seed: int,
    ) -> _Expected:
        N, C = self.clean.shape
        if time is not None:
            drawn = torch.randperm(N, generator=torch.Generator().manual_seed(seed))[:n]
            ridge = ridge_of_time(torch.linalg.eigvalsh(self.kernel[drawn][:, drawn]), time)
        wanted = self.vectors.T @ (flips.shrink * self.clean - self.start)
        clean = self.vectors.T @ self.clean
        task = Task(self.values, wanted.square().sum(1), N)
        curve = learning_curve(task, [n], ridge=ridge, noise=flips.variance)
        assert curve.train is not None
        learned = learnabilities(task, [n], ridge=ridge)[0]
        left = float(((1 - learned) * (wanted * clean).sum(1)).sum()) / (N - float(learned.sum()))
        lost = 1 - flips.shrink
        noisy = float(curve.test[0])
        return _Expected(
            clean=noisy - flips.variance + lost**2 * (1 - 1 / C) + 2 * lost * left,
            noisy=noisy,
            train=float(curve.train[0]),
            gcv=math.nan if train is None else self._gcv(train[0][:n], train[1][:n], ridge),
            ridge=ridge,
        )

    def _gcv(self, rows: Tensor, labels: Tensor, ridge: float) -> float:
        """(1/n) |(I − H) y|² / (tr(I − H) / n)², I − H = δ (K + δ)⁻¹ or its limit δ → 0."""
        C = self.clean.shape[1]
        targets = torch.nn.functional.one_hot(labels, C).double() - 1 / C - self.start[rows]
        values, vectors = torch.linalg.eigh(self.kernel[rows][:, rows])
        rounding = len(values) * EPS * float(values[-1])
        if ridge > 0:
            rest = ridge / (values.clamp_min(0) + ridge)
        elif float(values[0]) > rounding:
            rest = values[0] / values  # of a kernel without a null space: up to a factor that cancels
        else:
            rest = (values <= rounding).double()
        residual = (rest[:, None] * (vectors.T @ targets)).square().sum()
        return float(residual * len(values) / rest.sum() ** 2)


def _outputs(model: nn.Module, x: Any, forward: Callable[[nn.Module, Any], Tensor] | None) -> Tensor:
    rows = as_rows(x, "x_pool")
    prepared = prepare(model, rows, forward=forward, dtype=torch.float64, device=torch.device("cpu"))
    cast = rows.to(dtype=torch.float64, device=torch.device("cpu"))
    with torch.no_grad():
        return prepared.outputs(cast.slice(0, cast.n), cast.n).double()


def _checked_train(train: Any, pool: _Pool, most: int) -> tuple[Tensor, Tensor]:
    N, C = pool.clean.shape
    if not isinstance(train, tuple | list) or len(train) != 2:
        raise InputError(f"train of type {type(train).__name__}", expected="(rows, labels)", do="pass both")
    rows = as_labels(train[0], "train[0]", n_classes=N).cpu()
    labels = as_labels(train[1], "train[1]", n=len(rows), n_classes=C).cpu()
    if len(rows) < most or len(rows.unique()) != len(rows):
        raise InputError(
            f"{len(rows)} training rows, {len(rows.unique())} different ones",
            expected=f"at least {most}, none twice",
            do="pass the rows of the largest number of samples, in the order in which smaller ones use them",
        )
    return rows, labels
