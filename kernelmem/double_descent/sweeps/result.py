"""Results of a sweep: curves of every seed along an axis, their control, peak and interpolation threshold."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.double_descent.sweeps.peak import MIN_SEEDS, Peak, mean_se, peak
from kernelmem.double_descent.sweeps.threshold import Threshold, crossing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from kernelmem.plotting.double_descent import Theory

# Name of the axis of each kind, and how the training error changes along it.
AXES: dict[str, tuple[str, Literal["falling", "rising"]]] = {
    "model": ("width", "falling"),
    "depth": ("hidden layers", "falling"),
    "sample": ("training examples", "rising"),
    "epoch": ("step", "falling"),
    "noise": ("share of wrong labels", "rising"),
    "ridge": ("ridge", "rising"),
    "features": ("random features", "falling"),
    "features_sample": ("training examples", "rising"),
    "features_ridge": ("ridge", "rising"),
    "features_noise": ("share of wrong labels", "rising"),
}
# Columns of the printed table of a sweep, and its largest number of rows.
PRINTED_METRICS = ("test_error", "test_loss", "train_error", "memorized_flips")
MAX_PRINTED_ROWS = 30


@dataclass(frozen=True, eq=False, repr=False)
class Curves(Result):
    """Metrics of S seeds at A values of an axis, each (S, A) float64.

    Attributes:
        test_error: fraction of test examples not predicted as their clean label.
        test_loss: mean loss of test examples with respect to clean labels, which is the cross-entropy or the squared error
            summed over classes.
        train_error: fraction of training examples not predicted as the label that they were trained with.
        train_loss: mean loss of training examples with respect to these labels.
        memorized_flips: fraction of the training examples with wrong labels that are predicted as the wrong label; NaN if
            there are none.
        recovered_flips: fraction of the same examples that are predicted as their true label.
        noisy_test_error: test error with respect to test labels with the same noise as the training labels.
    """

    test_error: Tensor
    test_loss: Tensor
    train_error: Tensor
    train_loss: Tensor
    memorized_flips: Tensor
    recovered_flips: Tensor
    noisy_test_error: Tensor

    @classmethod
    def stack(cls, seeds: Sequence[dict[str, Tensor]]) -> "Curves":
        """Return the curves of S seeds, given one dictionary (metric name to (A,) tensor) per seed."""
        return cls(**{field.name: torch.stack([metrics[field.name] for metrics in seeds]) for field in fields(cls)})

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers (S, A) of seeds S and of values A of the axis."""
        return (int(self.test_error.shape[0]), int(self.test_error.shape[1]))

    def tensors(self) -> dict[str, Tensor]:
        """Return a dictionary from the name of each metric to its (S, A) tensor."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to_frame(self) -> "pd.DataFrame":
        """Return a table of the metrics with one row per seed and index of the axis."""
        import pandas as pd  # slow to import

        S, A = self.shape
        index = pd.MultiIndex.from_product([range(S), range(A)], names=["seed", "index"])
        columns = {name: value.flatten().numpy() for name, value in self.tensors().items()}
        return pd.DataFrame(columns, index=index).reset_index()

    def __str__(self) -> str:
        """Return a table of the first, smallest, largest and last value of each mean curve."""
        S, A = self.shape
        lines = [f"curves of {S} seeds at {A} values; means over seeds", f"{'':>18}{'first':>10}{'smallest':>10}"]
        lines[1] += f"{'largest':>10}{'last':>10}"
        for name, value in self.tensors().items():
            mean = value.mean(0)
            cells = (mean[0], mean.min(), mean.max(), mean[-1])
            lines.append(f"{name:>18}" + "".join(f"{float(cell):>10.4g}" for cell in cells))
        return "\n".join(lines)


@dataclass(frozen=True, eq=False, repr=False)
class Sweep(Result):
    """Curves along one axis over several seeds, with a control without label noise and all settings.

    Attributes:
        kind: "model", "depth", "sample", "epoch", "noise", "ridge"; for random features "features" (over their number),
            "features_sample", "features_ridge", "features_noise".
        axis: A values of the swept quantity, increasing.
        curves: (S, A) metrics; all at the last step, never at the best one.
        control: metrics of the same networks trained without label noise, for the first seeds; None: no control.
        threshold: interpolation threshold, if it is known or was found before the sweep; None: it is read from the sweep.
        metric: curve whose peak is summarized, "test_error" or "test_loss".
        epsilon: training error at or below which the labels count as fitted.
        seconds: wall-clock time, without that of results read from an interrupted run.
        config: settings of the sweep, as JSON values.
    """

    kind: str
    axis: tuple[float, ...]
    curves: Curves
    control: Curves | None
    threshold: Threshold | None
    metric: str
    epsilon: float
    seconds: float
    config: dict[str, Any]

    def __post_init__(self) -> None:
        """Check the kind of the sweep and the shapes of its curves; raise an InputError if they do not fit the axis."""
        if self.kind not in AXES:
            raise InputError(f"kind={self.kind!r}", expected=f"one of {', '.join(AXES)}", hint="pass one of these")
        for curves in (self.curves, self.control):
            if curves is None:
                continue
            for name, value in curves.tensors().items():
                if value.ndim != 2 or value.shape != curves.shape or value.shape[1] != len(self.axis):
                    raise InputError(
                        f"{name} of shape {tuple(value.shape)} and an axis of {len(self.axis)} values",
                        expected=f"curves (S, {len(self.axis)})",
                        hint="pass one row per seed",
                    )

    def peak(self, metric: str | None = None, *, control: bool = False) -> Peak:
        """Return the cross-fitted peak of a curve; see :func:`kernelmem.double_descent.peak`.

        Raises:
            InputError: there are fewer than 4 seeds, a value is NaN, or the sweep has no control.
        """
        name = metric or self.metric
        curves = self.control if control else self.curves
        if curves is None:
            raise InputError("a sweep without control", expected="control curves", hint="run it with control=4")
        return peak(getattr(curves, name), self.axis, metric=name)

    def interpolation(self) -> Threshold:
        """Return where the training error of the sweep crosses epsilon; NaN if a network diverged."""
        direction = AXES[self.kind][1]
        if not bool(torch.isfinite(self.curves.train_error).all()):
            return Threshold(math.nan, math.nan, math.nan, self.epsilon, direction, evaluated=self.axis)
        return crossing(self.axis, self.curves.train_error, epsilon=self.epsilon, direction=direction)

    def summary(self) -> dict[str, Any]:
        """Return the content of summary.json: means, standard errors, peak, control, threshold; None for NaN.

        A peak is None with fewer than 4 seeds, or if a network diverged.
        """
        summary: dict[str, Any] = {
            "kind": self.kind,
            "axis_name": AXES[self.kind][0],
            "axis": list(self.axis),
            "seeds": self.curves.shape[0],
            **{name: _mean_se_lists(value) for name, value in self.curves.tensors().items()},
            "peak": _peak_summary(self, self.metric, control=False),
            "peaks": {name: _peak_summary(self, name, control=False) for name in ("test_error", "test_loss")},
            "control": None,
        }
        if self.control is not None:
            peak_summary = _peak_summary(self, self.metric, control=True)
            control = peak_summary | _mean_se_lists(getattr(self.control, self.metric))
            summary["control"] = control | {"seeds": self.control.shape[0]}
        sweep_threshold = self.interpolation()
        threshold = self.threshold or sweep_threshold
        summary["threshold"] = {
            "value": threshold.value,
            "interval": [threshold.low, threshold.high],
            "epsilon": threshold.epsilon,
            "outside": threshold.outside,
            "source": "before the sweep" if self.threshold else "the sweep",
            "of_sweep": {
                "value": sweep_threshold.value,
                "interval": [sweep_threshold.low, sweep_threshold.high],
                "outside": sweep_threshold.outside,
            },
        }
        return as_json(summary | {"seconds": self.seconds, "config": self.config})

    def to_frame(self) -> "pd.DataFrame":
        """Return a table with one row per seed, value of the axis and kind of labels ("noisy" or "control")."""
        import pandas as pd  # slow to import

        frames = []
        for labels, curves in (("noisy", self.curves), ("control", self.control)):
            if curves is not None:
                frame = curves.to_frame()
                frame.insert(0, "labels", labels)
                frame.insert(1, AXES[self.kind][0].replace(" ", "_"), list(self.axis) * curves.shape[0])
                frames.append(frame.drop(columns="index"))
        return pd.concat(frames, ignore_index=True)

    def plot(self, *, theory: "Sequence[Theory]" = ()) -> "Figure":
        """Return a figure of errors, losses and memorized flips along the axis, with intervals over seeds."""
        from kernelmem.plotting.double_descent import sweep_figure  # matplotlib is slow to import

        return sweep_figure(self, AXES[self.kind][0], self.threshold or self.interpolation(), theory=theory)

    def __str__(self) -> str:
        """Return a table of the main metrics along the axis, followed by the peaks and the interpolation threshold."""
        summary = self.summary()
        S, A = self.curves.shape
        lines = [f"{self.kind}-wise sweep: {A} values, {S} seeds (mean ± standard error), {self.seconds:.1f} s"]
        lines.append(f"{AXES[self.kind][0]:>22}" + "".join(f"{name:>20}" for name in PRINTED_METRICS))
        for a in evenly_spaced_indices(A, MAX_PRINTED_ROWS):
            cells = [(summary[name]["mean"][a], summary[name]["se"][a]) for name in PRINTED_METRICS]
            lines.append(f"{self.axis[a]:>22g}" + "".join(f"{_format_mean_se(*cell):>20}" for cell in cells))
        for title, stats in (("peak", summary["peak"]), ("control", summary["control"])):
            if stats is not None and stats.get("rise") is not None:
                rise, fall = (
                    "{:+.3f} ({:+.3f} to {:+.3f})".format(stats[name], *stats[f"{name}_interval"])
                    for name in ("rise", "fall")
                )
                lines.append(
                    f"{title} of {self.metric}: {stats['height']:.3f} at {stats['axis_value']:g}, rise {rise}, fall {fall},"
                    f" 95 % intervals: {stats['verdict']}"
                )
        threshold = summary["threshold"]
        location = f"{threshold['outside']} the evaluated values"
        if not threshold["outside"]:
            location = "at an unknown value" if threshold["value"] is None else f"at {threshold['value']:.4g}"
        source = "located before the sweep" if self.threshold else "read from the sweep"
        lines.append(f"training error {threshold['epsilon']:g} is reached {location} ({source})")
        return "\n".join(lines)


def _mean_se_lists(values: Tensor) -> dict[str, list[float]]:
    mean, se = mean_se(values.numpy())
    return {"mean": mean.tolist(), "se": se.tolist()}


def _format_mean_se(mean: float | None, se: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.3f}" + ("" if se is None else f" ± {se:.3f}")


def _peak_summary(sweep: Sweep, metric: str, *, control: bool) -> dict[str, object]:
    """Return the attributes of the peak of the curve ``metric`` as a dictionary, of the control if ``control`` is true.

    The dictionary also has the intervals of rise and fall, and the verdict. All values but "metric" and "seeds" are None if
    there are fewer than 4 seeds, or if the curves have NaN or infinities.
    """
    curves = sweep.control if control else sweep.curves
    assert curves is not None
    if curves.shape[0] < MIN_SEEDS or not bool(torch.isfinite(curves.tensors()[metric]).all()):
        names = [*(field.name for field in fields(Peak)), "rise_interval", "fall_interval", "verdict"]
        return dict.fromkeys(names) | {"metric": metric, "seeds": curves.shape[0]}
    found = sweep.peak(metric, control=control)
    intervals: dict[str, object] = {"rise_interval": found.rise_interval, "fall_interval": found.fall_interval}
    return {**asdict(found), **intervals, "verdict": found.verdict}


def as_json(value: object) -> Any:
    """Return a value, and all values within dictionaries and lists, as JSON values.

    Tensors and tuples become lists; NaN and infinities become None.
    """
    if isinstance(value, dict):
        return {name: as_json(element) for name, element in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(element) for element in value]
    if isinstance(value, Tensor):
        return as_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def evenly_spaced_indices(count: int, max_count: int) -> list[int]:
    """Return at most ``max_count`` of the indices 0..count-1, evenly spaced, with the first and the last.

    >>> evenly_spaced_indices(3, 5), evenly_spaced_indices(9, 3)
    ([0, 1, 2], [0, 4, 8])
    """
    if count <= max_count:
        return list(range(count))
    return [round(k * (count - 1) / (max_count - 1)) for k in range(max_count)]
