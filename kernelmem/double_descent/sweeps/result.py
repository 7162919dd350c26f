"""What a sweep found: curves of every seed along an axis, their control, and what can be read from them."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from kernelmem.core.errors import InputError
from kernelmem.core.result_files import read_result, write_result
from kernelmem.double_descent.sweeps.peak import FEWEST, Peak, mean_se, peak
from kernelmem.double_descent.sweeps.threshold import Threshold, crossing

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from kernelmem.plotting.sweep import Theory

__all__ = ["AXES", "Curves", "Sweep", "plain", "stack"]

KIND = "sweep 1"
# What the axis of each kind is called, and which way the training error goes along it.
AXES = {
    "model": ("width", "falling"),
    "depth": ("hidden layers", "falling"),
    "sample": ("training rows", "rising"),
    "epoch": ("step", "falling"),
    "noise": ("share of wrong labels", "rising"),
    "ridge": ("ridge", "rising"),
    "features": ("random features", "falling"),
    "features_sample": ("training rows", "rising"),
    "features_ridge": ("ridge", "rising"),
    "features_noise": ("share of wrong labels", "rising"),
}


@dataclass(frozen=True, eq=False)
class Curves:
    """Figures of S seeds at A values of an axis, each (S, A) float64.

    Attributes:
        test_error: share of test rows with another prediction than their (clean) label.
        test_loss: mean loss of test rows against clean labels: cross-entropy, or squared error summed over classes.
        train_error: against the labels that were trained on.
        train_loss: the same.
        memorized_flips: share of the flipped training rows predicted as their wrong label; NaN without flips.
        recovered_flips: share of them predicted as their true label; NaN without flips.
        noisy_test_error: test error against test labels with the same noise as the training labels.
    """

    test_error: Tensor = field(repr=False)
    test_loss: Tensor = field(repr=False)
    train_error: Tensor = field(repr=False)
    train_loss: Tensor = field(repr=False)
    memorized_flips: Tensor = field(repr=False)
    recovered_flips: Tensor = field(repr=False)
    noisy_test_error: Tensor = field(repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Seeds, values of the axis."""
        return (int(self.test_error.shape[0]), int(self.test_error.shape[1]))

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name."""
        return {own.name: getattr(self, own.name) for own in fields(self)}


@dataclass(frozen=True, eq=False)
class Sweep:
    """Curves along one axis over several seeds, with a control without label noise and all settings.

    Attributes:
        kind: "model", "depth", "sample", "epoch", "noise", "ridge", or of random features "features" (over their number),
            "features_sample", "features_ridge", "features_noise".
        axis: A values, increasing.
        curves: (S, A) figures; all at the last step, never at the best one.
        control: the same without label noise, of the first seeds; None where none was run.
        threshold: interpolation threshold, found before the sweep or known; None: it is read from the sweep.
        metric: the curve whose peak is asked for, "test_error" or "test_loss".
        epsilon: training error below which the labels count as fitted.
        seconds: wall-clock time, without what was read from an interrupted run.
        config: settings as JSON holds them.
    """

    kind: str
    axis: tuple[float, ...]
    curves: Curves
    control: Curves | None
    threshold: Threshold | None
    metric: str
    epsilon: float
    seconds: float
    config: dict[str, Any] = field(repr=False)

    def __post_init__(self) -> None:
        if self.kind not in AXES:
            raise InputError(f"kind {self.kind!r}", expected=f"one of {', '.join(AXES)}", hint="pass one of these")
        for own in (self.curves, *([self.control] if self.control is not None else [])):
            for name, value in own.tensors().items():
                if value.ndim != 2 or value.shape != own.shape or value.shape[1] != len(self.axis):
                    raise InputError(
                        f"{name} of shape {tuple(value.shape)} beside an axis of {len(self.axis)} values",
                        expected="(S, A) for every curve",
                        hint="pass one line a seed",
                    )

    def peak(self, metric: str | None = None, *, control: bool = False) -> Peak:
        """Return the cross-fitted peak of a curve; see :func:`kernelmem.double_descent.sweeps.peak.peak`.

        Raises:
            InputError: fewer than 4 seeds, or no control.
        """
        name = metric or self.metric
        curves = self.control if control else self.curves
        if curves is None:
            raise InputError("a sweep without control", expected="control curves", hint="run it with control=4")
        return peak(getattr(curves, name), self.axis, metric=name)

    def interpolation(self) -> Threshold:
        """Where the sweep's own training error crosses epsilon; NaN where a network diverged."""
        direction: Literal["falling", "rising"] = "falling" if AXES[self.kind][1] == "falling" else "rising"
        if not bool(torch.isfinite(self.curves.train_error).all()):
            return Threshold(math.nan, math.nan, math.nan, self.epsilon, direction, evaluated=self.axis)
        return crossing(self.axis, self.curves.train_error, epsilon=self.epsilon, direction=direction)

    def summary(self) -> dict[str, Any]:
        """Return what summary.json holds: means, standard errors, peak, control, threshold; None for NaN.

        A peak is None with fewer than 4 seeds, or where a network diverged.
        """
        found: dict[str, Any] = {"kind": self.kind, "axis_name": AXES[self.kind][0], "axis": list(self.axis)}
        found["seeds"] = self.curves.shape[0]
        for name, value in self.curves.tensors().items():
            mean, se = mean_se(value.numpy())
            found[name] = {"mean": mean.tolist(), "se": se.tolist()}
        found["peak"] = _peak(self, self.metric, control=False)
        found["peaks"] = {name: _peak(self, name, control=False) for name in ("test_error", "test_loss")}
        found["control"] = None
        if self.control is not None:
            mean, se = mean_se(self.control.tensors()[self.metric].numpy())
            found["control"] = _peak(self, self.metric, control=True) | {"mean": mean.tolist(), "se": se.tolist()}
            found["control"]["seeds"] = self.control.shape[0]
        own = self.interpolation()
        before = self.threshold or own
        found["threshold"] = {
            "value": before.value,
            "interval": [before.low, before.high],
            "epsilon": before.epsilon,
            "outside": before.outside,
            "source": "before the sweep" if self.threshold else "the sweep",
            "of_sweep": {"value": own.value, "interval": [own.low, own.high], "outside": own.outside},
        }
        return plain(found | {"seconds": self.seconds, "config": self.config})

    def to_frame(self) -> "pandas.DataFrame":
        """One row a seed, value of the axis and set of labels ("noisy" or "control")."""
        import pandas  # slow to import

        parts = []
        for labels, own in (("noisy", self.curves), ("control", self.control)):
            if own is None:
                continue
            S, A = own.shape
            columns: dict[str, Any] = {"labels": labels, AXES[self.kind][0].replace(" ", "_"): list(self.axis) * S}
            columns["seed"] = [seed for seed in range(S) for _ in range(A)]
            columns |= {name: value.flatten().tolist() for name, value in own.tensors().items()}
            parts.append(pandas.DataFrame(columns))
        return pandas.concat(parts, ignore_index=True)

    def plot(self, *, theory: "Sequence[Theory]" = ()) -> "Figure":
        """Errors, losses and memorized flips along the axis, with intervals over seeds, control and threshold."""
        from kernelmem.plotting.sweep import sweep_figure  # matplotlib is slow to import

        return sweep_figure(self, AXES[self.kind][0], self.threshold or self.interpolation(), theory=theory)

    def save(self, path: str | Path) -> Path:
        """Write everything to a .safetensors file, with a hash."""
        tensors = {f"curves.{name}": value for name, value in self.curves.tensors().items()}
        if self.control is not None:
            tensors |= {f"control.{name}": value for name, value in self.control.tensors().items()}
        plain = {name: getattr(self, name) for name in ("kind", "axis", "metric", "epsilon", "seconds", "config")}
        return write_result(path, KIND, tensors, plain | {"threshold": self.threshold and asdict(self.threshold)})

    @classmethod
    def load(cls, path: str | Path) -> "Sweep":
        """Read what :meth:`save` wrote.

        Raises:
            FileCorruptError: missing, truncated, altered (its hash is another), or something else.
        """
        with read_result(path, KIND) as (tensors, figures):
            held = figures.pop("threshold")
            threshold = held and Threshold(**held | {"evaluated": tuple(held["evaluated"])})
            figures["axis"] = tuple(figures["axis"])
            curves, control = (_part(tensors, part) for part in ("curves", "control"))
            if curves is None:
                raise KeyError("curves")
            return cls(curves=curves, control=control, threshold=threshold, **figures)

    def __str__(self) -> str:
        found = self.summary()
        S, A = self.curves.shape
        lines = [f"{self.kind}-wise sweep: {A} values, {S} seeds, {self.seconds:.1f} s"]
        names = ("test_error", "test_loss", "train_error", "memorized_flips")
        lines.append(f"{AXES[self.kind][0]:>22}" + "".join(f"{name:>20}" for name in names))
        for a, value in enumerate(self.axis):
            cells = [(found[name]["mean"][a], found[name]["se"][a]) for name in names]
            lines.append(f"{value:>22g}" + "".join(f"{_cell(*cell):>20}" for cell in cells))
        for title, own in (("peak", found["peak"]), ("control", found["control"])):
            if own is not None and own.get("rise") is not None:
                lines.append(
                    f"{title} of {self.metric}: {own['height']:.3f} at {own['axis_value']:g},"
                    f" rise {own['rise']:+.3f} ± {own['rise_se']:.3f}, fall {own['fall']:+.3f} ± {own['fall_se']:.3f}"
                )
        at = found["threshold"]
        where = at["outside"] or ("none" if at["value"] is None else f"{at['value']:.4g}")
        lines.append(f"training error {at['epsilon']:g} at {where} (from {at['source']})")
        return "\n".join(lines)


def _cell(mean: float | None, se: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.3f}" + ("" if se is None else f" ± {se:.3f}")


def _peak(sweep: Sweep, metric: str, *, control: bool) -> dict[str, Any]:
    curves = sweep.control if control else sweep.curves
    assert curves is not None
    if curves.shape[0] < FEWEST or not bool(torch.isfinite(curves.tensors()[metric]).all()):
        blank = {own.name: None for own in fields(Peak)}
        return blank | {"metric": metric, "seeds": curves.shape[0]}
    return asdict(sweep.peak(metric, control=control))


def _part(tensors: dict[str, Tensor], part: str) -> Curves | None:
    own = {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}
    return Curves(**own) if own else None


def plain(value: Any) -> Any:
    """As JSON holds it: NaN and infinities become None."""
    if isinstance(value, dict):
        return {name: plain(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [plain(own) for own in value]
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def stack(parts: Sequence[dict[str, Tensor]]) -> Curves:
    """Make curves of one dictionary a seed, each with tensors (A,)."""
    return Curves(**{own.name: torch.stack([part[own.name] for part in parts]) for own in fields(Curves)})
