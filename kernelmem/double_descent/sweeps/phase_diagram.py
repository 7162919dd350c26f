"""Phase diagram: test error and memorized labels over width, samples, steps and noise; memorization by the initial NTK."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kernelmem.core.checks import as_count, as_number, check_instance, seed_sequence
from kernelmem.core.files.result_files import Result
from kernelmem.core.options import Progress, as_progress
from kernelmem.double_descent.argument_checks import as_axis
from kernelmem.double_descent.sweeps.jobs import METRICS, Job, run_jobs
from kernelmem.double_descent.sweeps.options import EXECUTION, MAX_SEEDS, Execution
from kernelmem.double_descent.sweeps.result import as_json, evenly_spaced_indices
from kernelmem.double_descent.sweeps.training_sets import SeedDraw, as_pool_data, draw_for_seed
from kernelmem.kernel_machines.model_selection.leave_one_out import leave_one_out
from kernelmem.kernels.ntk import ntk
from kernelmem.training.datasets import LabeledDataLike, as_labeled_data
from kernelmem.training.ensemble.members import Member
from kernelmem.training.ensemble.recipe import Recipe
from kernelmem.training.mlp import mlp

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

RIDGE = 1e-2  # relative to the mean diagonal of the tangent kernel
AXIS_NAMES = ("noise", "samples", "width", "step")  # names of the axes, in the order of the dimensions


@dataclass(frozen=True)
class Grid:
    """Axes of a phase diagram, each with increasing values.

    Attributes:
        widths: W hidden widths.
        samples: N numbers of training examples.
        steps: T numbers of steps at which networks are evaluated.
        noise: R fractions of wrong labels.

    Raises:
        InputError: an axis is empty, does not increase, or has values out of range.
    """

    widths: Sequence[int]
    samples: Sequence[int]
    steps: Sequence[int]
    noise: Sequence[float]

    def __post_init__(self) -> None:
        for name, minimum in (("widths", 1), ("samples", 1), ("steps", 0)):
            axis = as_axis(getattr(self, name), name, integer=True, minimum=minimum, exclusive=False)
            object.__setattr__(self, name, tuple(axis.astype(int).tolist()))
        noise = as_axis(self.noise, "noise", maximum=1, exclusive=False)
        object.__setattr__(self, "noise", tuple(noise.tolist()))


@dataclass(frozen=True, eq=False, repr=False)
class PhaseDiagram(Result):
    """Metrics over four axes; R noise rates, N numbers of examples, W widths, T steps, S seeds; float64.

    Attributes:
        noise, samples, widths, steps: values of the axes, as in :class:`Grid`.
        test_error, train_error, memorized_flips: (S, R, N, W, T), as in :class:`kernelmem.double_descent.Curves`.
        kernel_flips: (S, R, N, W) mean exact leave-one-out memorization of the examples with wrong labels,
            f(x_i) − f₋ᵢ(x_i) in the label's column, by ridge regression with the NTK of the untrained network; NaN
            without wrong labels.
        kernel_clean: the same mean over the examples with correct labels.
        epsilon: training error at or below which the labels count as fitted.
        seconds: wall-clock time of the computation.
        config: recipe, seed, name of the data and ridge, as JSON values.
    """

    noise: tuple[float, ...]
    samples: tuple[int, ...]
    widths: tuple[int, ...]
    steps: tuple[int, ...]
    test_error: Tensor
    train_error: Tensor
    memorized_flips: Tensor
    kernel_flips: Tensor
    kernel_clean: Tensor
    epsilon: float
    seconds: float
    config: dict[str, Any]

    def summary(self) -> dict[str, object]:
        """Return a dictionary of JSON values: axes, means over seeds and standard errors as nested lists; NaN is None."""
        summary: dict[str, object] = {"kind": "phase_diagram", "seeds": len(self.test_error), "epsilon": self.epsilon}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                se = value.std(0) / len(value) ** 0.5 if len(value) > 1 else torch.full_like(value[0], torch.nan)
                summary[field.name] = {"mean": value.mean(0), "se": se}
            elif isinstance(value, tuple):
                summary[field.name] = list(value)
        return as_json(summary | {"seconds": self.seconds, "config": self.config})

    def to_frame(self) -> "pd.DataFrame":
        """Return a table of the metrics with one row per seed, noise rate, number of examples, width and step."""
        import pandas as pd  # slow to import

        axes: list[Sequence[float]] = [self.noise, self.samples, self.widths, self.steps]
        index = pd.MultiIndex.from_product([range(len(self.test_error)), *axes], names=["seed", *AXIS_NAMES])
        columns = {
            name: getattr(self, name).flatten().numpy() for name in ("test_error", "train_error", "memorized_flips")
        }
        for name in ("kernel_flips", "kernel_clean"):  # the same at every step
            columns[name] = getattr(self, name)[..., None].expand(self.test_error.shape).flatten().numpy()
        return pd.DataFrame(columns, index=index).reset_index()

    def plot(self) -> "Figure":
        """Return a figure of test error and memorized flips over pairs of axes, with the interpolation threshold."""
        from kernelmem.plotting.double_descent import phase_diagram_figure  # matplotlib is slow to import

        return phase_diagram_figure(self)

    def __str__(self) -> str:
        """Return a table of the mean test error over widths and numbers of examples, at the last noise rate and step."""
        S, R, N, W, T = self.test_error.shape
        lines = [
            f"phase diagram: {R} noise rates x {N} sample sizes x {W} widths x {T} steps, {S} seeds, {self.seconds:.1f} s",
            f"test error at noise {self.noise[-1]:g}, step {self.steps[-1]} (* training error <= {self.epsilon:g})",
        ]
        printed = evenly_spaced_indices(W, 9), evenly_spaced_indices(N, 30)
        lines.append(f"{'examples':>8}" + "".join(f"{f'width {self.widths[w]}':>12}" for w in printed[0]))
        for n in printed[1]:
            line = f"{self.samples[n]:>8}"
            for w in printed[0]:
                fitted = float(self.train_error[:, -1, n, w, -1].mean()) <= self.epsilon
                line += f"{float(self.test_error[:, -1, n, w, -1].mean()):>11.3f}" + ("*" if fitted else " ")
            lines.append(line.rstrip())
        return "\n".join(lines)


def phase_diagram(
    data: LabeledDataLike,
    grid: Grid,
    *,
    recipe: Recipe | None = None,
    n_seeds: int = 2,
    seed: int = 0,
    epsilon: float = 0.1,
    execution: Execution = EXECUTION,
    progress: Progress = None,
) -> PhaseDiagram:
    """Train a network for every width, number of examples, noise rate and seed, and evaluate it at every step of the grid.

    Seeds are paired as in :func:`kernelmem.double_descent.sweep`; examples and labels are nested in the number of
    examples. The kernel is the NTK of each untrained network (trace over outputs), with a ridge of 0.01 times its mean
    diagonal.

    Args:
        data: examples and clean labels, as LabeledData or ((x_train, y_train), (x_test, y_test)).
        grid: widths, numbers of examples, steps and noise rates.
        recipe: optimizer, schedule, batch size and loss; networks are trained for the last number of steps of the grid.
        n_seeds: number of seeds S.
        seed: seed of all random draws.
        epsilon: training error at or below which the labels count as fitted.
        execution: output directory, executor, dtype, device and memory; one task per noise rate and seed (``chunk`` is not
            used).
        progress: called with (networks done, networks in total).

    Raises:
        InputError: the grid has more examples than the training set.

    Cost: S·R·N·W networks, and as many factorizations of n x n kernels.
    """
    start_time = time.perf_counter()
    data = as_labeled_data(data)
    check_instance(grid, "grid", Grid)
    check_instance(execution, "execution", Execution)
    recipe = Recipe() if recipe is None else recipe
    check_instance(recipe, "recipe", Recipe)
    n_seeds, epsilon = as_count(n_seeds, "n_seeds", maximum=MAX_SEEDS), as_number(epsilon, "epsilon", maximum=1.0)
    recipe = replace(recipe, steps=grid.steps[-1])
    pool = as_pool_data(data)
    seeds = seed_sequence(seed, [str(s) for s in range(n_seeds)])
    seed_draws = [draw_for_seed(pool.y, derived_seed) for derived_seed in seeds.values()]
    jobs = []
    for seed_draw, noise_rate in product(seed_draws, grid.noise):
        networks = [(seed_draw.training_set(n, noise_rate), width) for n, width in product(grid.samples, grid.widths)]
        jobs.append(
            Job(
                members=tuple(
                    Member(width, training_set.indices, training_set.labels, seed_draw.init_seed, seed_draw.order_seed)
                    for training_set, width in networks
                ),
                true_labels=tuple(training_set.true_labels for training_set, _ in networks),
                noisy_test_labels=(pool.y_test,) * len(networks),
                x=pool.x,
                x_test=pool.x_test,
                y_test=pool.y_test,
                recipe=recipe,
                evaluate_at=tuple(grid.steps),
                n_classes=data.n_classes,
                dtype=str(execution.dtype).removeprefix("torch."),
                device=execution.device,
                memory=execution.memory,
            )
        )
    directory = None if execution.out is None else Path(execution.out)
    results = run_jobs(jobs, directory, execution, as_progress(progress, "phase diagram", "network"))
    shape = (n_seeds, len(grid.noise), len(grid.samples), len(grid.widths), len(grid.steps))
    metrics = {name: torch.stack([result[name] for result in results]).reshape(shape) for name in METRICS}
    kernel_memorization = torch.stack(
        [_kernel_memorization(seed_draw, pool.x, grid, data.n_classes) for seed_draw in seed_draws]
    )
    return PhaseDiagram(
        noise=tuple(grid.noise),
        samples=tuple(grid.samples),
        widths=tuple(grid.widths),
        steps=tuple(grid.steps),
        **{name: metrics[name] for name in ("test_error", "train_error", "memorized_flips")},
        kernel_flips=kernel_memorization[..., 0],
        kernel_clean=kernel_memorization[..., 1],
        epsilon=epsilon,
        seconds=time.perf_counter() - start_time,
        config={"recipe": asdict(recipe), "seed": seed, "data": data.name, "ridge": RIDGE},
    )


def _kernel_memorization(seed_draw: SeedDraw, x: Tensor, grid: Grid, C: int) -> Tensor:
    """Return the mean leave-one-out memorization by the NTK of untrained networks, (R, N, W, 2), float64.

    The axes are R noise rates, N numbers of examples, W widths, and [0] wrong or [1] correct labels (NaN if there are
    none). ``seed_draw`` gives examples and labels from the pool ``x``; C is the number of classes.
    """
    shape = (len(grid.noise), len(grid.samples), len(grid.widths), 2)
    memorization = torch.full(shape, torch.nan, dtype=torch.float64)
    flat_x = x.flatten(1).float()
    for w, width in enumerate(grid.widths):
        network = mlp(flat_x.shape[1], width, C, seed=seed_draw.init_seed)
        kernel = ntk(network, flat_x[seed_draw.order[: grid.samples[-1]]], outputs="trace").double()
        for (r, noise_rate), (k, n) in product(enumerate(grid.noise), enumerate(grid.samples)):
            training_set, kernel_block = seed_draw.training_set(n, noise_rate), kernel[:n, :n]
            targets = torch.eye(C, dtype=torch.float64)[training_set.labels]
            memorization_scores = leave_one_out(
                kernel_block, targets, RIDGE * float(kernel_block.diagonal().mean())
            ).memorization
            for column, mask in enumerate((training_set.flipped, ~training_set.flipped)):
                if bool(mask.any()):
                    memorization[r, k, w, column] = memorization_scores[mask].mean()
    return memorization
