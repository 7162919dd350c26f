"""The atlas: test error and memorized labels over width x rows x steps x noise, and what the tangent kernel memorizes."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kernelmem.core.checks import as_labels, as_tensor, seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.core.result_files import Result
from kernelmem.double_descent.sweeps.jobs import FIGURES, Job, run_jobs
from kernelmem.double_descent.sweeps.training_sets import Drawn, draw
from kernelmem.kernel_machines.model_selection.leave_one_out import leave_one_out
from kernelmem.kernels.ntk import ntk
from kernelmem.training.datasets import LabeledData
from kernelmem.training.ensemble.members import Member
from kernelmem.training.ensemble.recipe import Recipe
from kernelmem.training.mlp import mlp

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

__all__ = ["PhaseDiagram", "phase_diagram"]

RIDGE = 1e-2  # of the mean diagonal of the tangent kernel


@dataclass(frozen=True, eq=False, repr=False)
class PhaseDiagram(Result):
    """Figures over four axes; R noise rates, N numbers of rows, W widths, T steps, S seeds, float64.

    Attributes:
        noise, samples, widths, steps: the axes.
        test_error, train_error, memorized_flips: (S, R, N, W, T) as in :class:`kernelmem.double_descent.sweeps.result.Curves`.
        kernel_flips: (S, R, N, W) mean exact leave-one-out memorization of the flipped rows, f(x_i) - f_{-i}(x_i) in
            the label's column, by ridge regression with the tangent kernel of the untrained network; NaN without flips.
        kernel_clean: the same of the rows whose label is right.
        epsilon: training error below which labels count as fitted.
        seconds: wall-clock time.
        config: settings.
    """

    noise: tuple[float, ...]
    samples: tuple[int, ...]
    widths: tuple[int, ...]
    steps: tuple[int, ...]
    test_error: Tensor = field(repr=False)
    train_error: Tensor = field(repr=False)
    memorized_flips: Tensor = field(repr=False)
    kernel_flips: Tensor = field(repr=False)
    kernel_clean: Tensor = field(repr=False)
    epsilon: float
    seconds: float
    config: dict[str, Any] = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """Return axes, means over seeds and their standard errors as nested lists, None for NaN."""
        from kernelmem.double_descent.sweeps.result import plain

        found: dict[str, Any] = {"kind": "phase_diagram", "seeds": len(self.test_error), "epsilon": self.epsilon}
        for own in fields(self):
            value = getattr(self, own.name)
            if isinstance(value, Tensor):
                se = value.std(0) / len(value) ** 0.5 if len(value) > 1 else torch.full_like(value[0], torch.nan)
                found[own.name] = {"mean": value.mean(0), "se": se}
            elif isinstance(value, tuple):
                found[own.name] = list(value)
        return plain(found | {"seconds": self.seconds, "config": self.config})

    def to_frame(self) -> "pandas.DataFrame":
        """One row a seed, noise, number of rows, width and step."""
        import pandas  # slow to import

        lines = []
        for s, *at in product(range(len(self.test_error)), *(range(len(own)) for own in self._axes())):
            place = (s, *at)
            names = ("noise", "samples", "width", "step")
            line = {"seed": s} | {name: axis[i] for name, axis, i in zip(names, self._axes(), at, strict=True)}
            line |= {
                name: float(getattr(self, name)[place]) for name in ("test_error", "train_error", "memorized_flips")
            }
            line |= {name: float(getattr(self, name)[place[:-1]]) for name in ("kernel_flips", "kernel_clean")}
            lines.append(line)
        return pandas.DataFrame(lines)

    def plot(self) -> "Figure":
        """Maps of test error and memorized flips over pairs of axes, with the line of the interpolation threshold."""
        from kernelmem.plotting.phase_diagram import phase_diagram_figure  # matplotlib is slow to import

        return phase_diagram_figure(self)

    def _axes(self) -> tuple[tuple[float, ...], ...]:
        return (self.noise, self.samples, self.widths, self.steps)

    def __str__(self) -> str:
        S, R, N, W, T = self.test_error.shape
        lines = [f"atlas: {R} noise rates x {N} samples x {W} widths x {T} steps, {S} seeds, {self.seconds:.1f} s"]
        lines.append(
            f"test error at noise {self.noise[-1]:g}, step {self.steps[-1]} (* training error <= {self.epsilon:g})"
        )
        lines.append(f"{'rows':>8}" + "".join(f"{f'width {w}':>12}" for w in self.widths))
        for k, n in enumerate(self.samples):
            cells = []
            for w in range(W):
                at = (slice(None), -1, k, w, -1)
                star = "*" if float(self.train_error[at].mean()) <= self.epsilon else " "
                cells.append(f"{float(self.test_error[at].mean()):.3f}{star}")
            lines.append(f"{n:>8}" + "".join(f"{cell:>12}" for cell in cells))
        return "\n".join(lines)


def phase_diagram(
    data: LabeledData,
    *,
    widths: Sequence[int],
    samples: Sequence[int],
    steps: Sequence[int],
    noise: Sequence[float],
    recipe: Recipe | None = None,
    seeds: int = 2,
    seed: int = 0,
    epsilon: float = 0.1,
    out: str | Path | None = None,
    executor: Executor | None = None,
    device: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> PhaseDiagram:
    """Train a network for every width, number of rows, noise rate and seed, and take its figures at every step asked for.

    Seeds are paired as in :func:`kernelmem.double_descent.sweeps.sweep.sweep`, rows and labels nested in the number of rows. The kernel
    is that of each untrained network (trace over outputs), its ridge 0.01 of the mean diagonal.

    Args:
        data: rows and clean labels.
        widths: increasing, like the next three.
        samples: numbers of training rows.
        steps: at which figures are taken.
        noise: shares of wrong labels.
        recipe: how networks train; its steps are the last of ``steps``.
        seeds: S.
        seed: of all draws.
        epsilon: training error below which labels count as fitted.
        out: keeps what is done in its ``chunks``.
        executor: any PEP 3148 executor, a task for each noise rate and seed.
        device: where networks train.
        progress: called with (networks done, of how many).

    Raises:
        InputError: an empty axis, one that does not increase, more rows than there are.

    Cost: S·R·N·W networks, and as many factorizations of n x n kernels.
    """
    started = time.perf_counter()
    axes = {"widths": widths, "samples": samples, "steps": steps, "noise": noise}
    for name, own in axes.items():
        if not len(own) or list(own) != sorted(set(own)):
            raise InputError(f"{name}={list(own)!r}", expected="increasing values, at least one", hint="sort them")
    recipe = replace(recipe or Recipe(), steps=int(steps[-1]))
    x, x_test = as_tensor(data.x_train, "x_train"), as_tensor(data.x_test, "x_test")
    y, y_test = as_labels(data.y_train, "y_train", n=len(x)), as_labels(data.y_test, "y_test", n=len(x_test))
    names = [str(s) for s in range(seeds)]
    draws = [draw(y, own) for own in seed_sequence(seed, names).values()]
    jobs = []
    for drawn, rate in product(draws, noise):
        rows = [(drawn.rows(n, rate), w) for n, w in product(samples, widths)]
        jobs.append(
            Job(
                members=tuple(Member(int(w), r.at, r.labels, drawn.init_seed, drawn.order_seed) for r, w in rows),
                clean=tuple(r.clean for r, _ in rows),
                noisy_tests=(y_test,) * len(rows),
                x=x,
                x_test=x_test,
                y_test=y_test,
                recipe=recipe,
                evaluate_at=tuple(int(t) for t in steps),
                n_classes=data.n_classes,
                device=device,
            )
        )
    found = run_jobs(jobs, None if out is None else Path(out), executor, progress)
    shape = (seeds, len(noise), len(samples), len(widths), len(steps))
    trained = {name: torch.stack([own[name] for own in found]).reshape(shape) for name in FIGURES}
    kernels = torch.stack([_kernel(drawn, x, widths, samples, noise, data.n_classes) for drawn in draws])
    return PhaseDiagram(
        noise=tuple(float(own) for own in noise),
        samples=tuple(int(own) for own in samples),
        widths=tuple(int(own) for own in widths),
        steps=tuple(int(own) for own in steps),
        **{name: trained[name] for name in ("test_error", "train_error", "memorized_flips")},
        kernel_flips=kernels[..., 0],
        kernel_clean=kernels[..., 1],
        epsilon=epsilon,
        seconds=time.perf_counter() - started,
        config={"recipe": asdict(recipe), "seed": seed, "data": data.name, "ridge": RIDGE},
    )


def _kernel(
    drawn: Drawn, x: Tensor, widths: Sequence[int], samples: Sequence[int], noise: Sequence[float], C: int
) -> Tensor:
    """Mean leave-one-out memorization of flipped and of clean rows, (R, N, W, 2)."""
    result = torch.full((len(noise), len(samples), len(widths), 2), torch.nan, dtype=torch.float64)
    flat = x.flatten(1).float()
    for j, width in enumerate(widths):
        network = mlp(flat.shape[1], int(width), C, seed=drawn.init_seed)
        kernel = ntk(network, flat[drawn.order[: int(samples[-1])]], outputs="trace").double()
        for (r, rate), (k, n) in product(enumerate(noise), enumerate(samples)):
            rows, block = drawn.rows(int(n), rate), kernel[: int(n), : int(n)]
            targets = torch.eye(C, dtype=torch.float64)[rows.labels]
            memorized = leave_one_out(block, targets, RIDGE * float(block.diagonal().mean())).memorization
            if bool(rows.flipped.any()):
                result[r, k, j, 0] = memorized[rows.flipped].mean()
            if not bool(rows.flipped.all()):
                result[r, k, j, 1] = memorized[~rows.flipped].mean()
    return result
