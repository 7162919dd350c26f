"""One pass along a recorded run: outputs at both ends, what one tangent a step explains, and the kernel as it moves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kernelmem.core.batches import Rows
from kernelmem.core.checks import as_tensor
from kernelmem.core.errors import NumericalError
from kernelmem.kernels.alignment import centered_target_alignment, kernel_distance, relative_distance
from kernelmem.recording.replay import replay
from kernelmem.recording.run import Run
from kernelmem.tangents.derivatives.jvp import Linearized, choose_mode
from kernelmem.tangents.prepare import PreparedModel, prepare
from kernelmem.trajectory.path_kernel.kernel_at_weights import KernelAtWeights
from kernelmem.trajectory.path_kernel.path_kernel import moved_parameters

__all__ = [
    "KernelMovement",
    "TrajectoryPass",
    "checkpoints_of",
    "concatenated",
    "movement",
    "pull_at",
    "trajectory_pass",
]

NULLS = 16  # permutations of the targets
State = dict[str, Tensor]


@dataclass(frozen=True)
class KernelMovement:
    """The trace kernel of training rows after some steps, beside where it began."""

    step: int
    distance: float  # 1 − cosine with the initial kernel: 0 where it only grew
    change: float  # |K − K_0| / |K_0|
    velocity: float  # 1 − cosine with the kernel of the checkpoint before, for each step between; NaN at the first
    alignment: float  # centered, with the targets
    null_alignment: float  # the same, targets permuted: mean of 16
    null_spread: float  # standard deviation over these


@dataclass(frozen=True, eq=False)
class TrajectoryPass:
    """What one pass found; outputs are of all rows that were passed, in float64."""

    first: State
    last: State
    initial: Tensor  # (rows, C)
    final: Tensor  # (rows, C)
    left: Tensor | None  # (rows, C): Σ_t J(x; w_t) d_t
    states: dict[int, State]  # at the checkpoints


def trajectory_pass(
    run: Run,
    model: nn.Module,
    rows: Rows,
    *,
    left: range | None,
    checkpoints: Sequence[int],
    loss: Any,
    forward: Callable[[nn.Module, Any], Tensor] | None,
    progress: Callable[[int, int], None] | None,
) -> TrajectoryPass:
    """Replay a run once; ``left``: of which rows the left rule is summed, None: of none.

    Cost: two forward passes of all rows, one dual pass of the left rows a step, and the replay. Memory: the checkpoints.
    """
    names = moved_parameters(run, list(run.steps))
    options = {"forward": forward, "parameters": names, "dtype": torch.float64, "device": "cpu", "evaluation": True}
    prepared = prepare(model, rows, **options)
    rows = rows.to(dtype=torch.float64, device=torch.device("cpu"))
    own = None if left is None else Rows(rows.slice(left.start, left.stop), len(left))
    mode = None if own is None else choose_mode(prepared, own)
    wanted = set(checkpoints)
    states: dict[int, State] = {}
    ends: list[Tensor] = []
    first: State = {}
    before: State = {}
    total: Tensor | None = None
    for t, state in replay(run, model, loss=loss, forward=forward):
        if mode is not None and own is not None and t > 0:
            _put(prepared, before)
            step = {name: state[name].double() - before[name].double() for name in prepared.parameters}
            slope = Linearized(prepared, own.slice(0, own.n), own.n, mode=mode).jvp(step)
            total = slope if total is None else total + slope
        if t in wanted:
            states[t] = state
        if t in (0, len(run)):
            first = first or state
            ends.append(outputs_at(prepared, state, rows))
        before = state
        if progress is not None:
            progress(t, len(run))
    return TrajectoryPass(first, before, ends[0], ends[-1], total, states)


def checkpoints_of(steps: int, count: int) -> list[int]:
    """About ``count`` numbers of steps from 0 to ``steps``, evenly spaced."""
    return sorted({round(float(t)) for t in np.linspace(0, steps, max(2, count))})


def movement(
    kernel: KernelAtWeights, states: dict[int, State], targets: Any, *, memory: int, seed: int
) -> tuple[KernelMovement, ...]:
    """How far the kernel has moved at every checkpoint, and how it is aligned with the targets."""
    plan = kernel.plan(memory)
    y = as_tensor(targets, "y")
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(y), generator=generator) for _ in range(NULLS)]
    found: list[KernelMovement] = []
    first: Tensor | None = None
    before: tuple[int, Tensor] | None = None
    for t, state in sorted(states.items()):
        K = kernel.at(state, plan).double().cpu()
        K = (K + K.T) / 2
        first = K if first is None else first
        velocity = float("nan") if before is None else kernel_distance(before[1], K) / (t - before[0])
        nulls = np.array([_aligned(K, y[order]) for order in orders])
        spread = float(nulls.std(ddof=1))
        moved = (kernel_distance(K, first), relative_distance(K, first), velocity)
        found.append(KernelMovement(t, *moved, _aligned(K, y), float(nulls.mean()), spread))
        before = t, K
    return tuple(found)


def concatenated(first: Rows, second: Rows) -> Rows:
    """The rows of one, then those of the other."""
    leaves: list[Tensor] = []
    second.map(lambda leaf: leaves.append(leaf) or leaf)
    following = iter(leaves)
    return Rows(first.map(lambda leaf: torch.cat([leaf, next(following).to(leaf.dtype)])), first.n + second.n)


def outputs_at(prepared: PreparedModel, state: State, rows: Rows) -> Tensor:
    """Outputs (n, C) at a state."""
    _put(prepared, state)
    with torch.no_grad():
        return prepared.outputs(rows.slice(0, rows.n), rows.n).detach().clone()


def pull_at(prepared: PreparedModel, state: State, start: State, rows: Rows) -> Tensor:
    """J(x; state) w_0, w_0 the selected parameters of ``start``: (n, C)."""
    rows = rows.to(dtype=prepared.dtype, device=prepared.device)
    mode = choose_mode(prepared, rows)
    _put(prepared, state)
    direction = {name: start[name].to(p) for name, p in prepared.parameters.items()}
    return Linearized(prepared, rows.slice(0, rows.n), rows.n, mode=mode).jvp(direction).detach()


def _aligned(K: Tensor, y: Tensor) -> float:
    try:
        return centered_target_alignment(K, y)
    except NumericalError:  # targets that do not differ, or a kernel that is constant, have no direction
        return float("nan")


def _put(prepared: PreparedModel, state: State) -> None:
    module = prepared.module
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name in state:
                tensor.copy_(state[name])
