"""One pass along a recorded run: outputs at both ends, first-order changes, and movement of the kernel."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from kernelmem.core.batches import Forward, Rows
from kernelmem.core.checks import as_tensor
from kernelmem.core.errors import NumericalError
from kernelmem.kernels.alignment import centered_target_alignment, kernel_distance, relative_distance
from kernelmem.recording.replay import replay
from kernelmem.recording.run import Run
from kernelmem.tangents.derivatives.jvp import Linearized, choose_mode
from kernelmem.tangents.prepare import PreparedModel, prepare
from kernelmem.trajectory.path_kernel.kernel_at_weights import KernelAtWeights
from kernelmem.trajectory.path_kernel.path_kernel import moved_parameters

N_PERMUTATIONS = 16  # permutations of the targets
State = dict[str, Tensor]


@dataclass(frozen=True)
class KernelMovement:
    """The trace kernel of training rows after some steps, compared with the initial one."""

    step: int
    distance: float  # 1 − cosine with the initial kernel; 0 if it was only scaled
    change: float  # |K − K_0| / |K_0|
    velocity: float  # 1 − cosine with the kernel of the previous checkpoint, per step; NaN at the first
    alignment: float  # centered kernel-target alignment
    null_alignment: float  # centered kernel-target alignment with permuted targets: mean over 16 permutations
    null_spread: float  # standard deviation of the alignment over these permutations


@dataclass(frozen=True, eq=False)
class TrajectoryPass:
    """States and outputs collected in one pass along a run; outputs are float64."""

    first_state: State
    last_state: State
    initial_outputs: Tensor  # (rows, C)
    final_outputs: Tensor  # (rows, C)
    first_order: Tensor | None  # (rows, C): Σ_t J(x; w_t) (w_{t+1} − w_t)
    checkpoint_states: dict[int, State]  # by checkpoint step


def trajectory_pass(
    run: Run,
    model: nn.Module,
    rows: Rows,
    *,
    first_order: range | None,
    checkpoints: Sequence[int],
    loss: Callable[[Tensor, Tensor], Tensor] | None,
    forward: Forward | None,
    progress: Callable[[int, int], object],
) -> TrajectoryPass:
    """Replay a run once and return the outputs at its two ends, the first-order output changes and the checkpoint states.

    ``first_order`` selects the rows whose first-order changes J(x; w_t) (w_{t+1} − w_t) are summed; None: no rows.

    Cost: two forward passes of all rows, one Jacobian-vector product of the selected rows per step, and the replay.
    Memory: the checkpoints.
    """
    parameter_names = moved_parameters(run, list(run.steps))
    prepared = prepare(
        model, rows, forward=forward, parameters=parameter_names, dtype=torch.float64, device="cpu", evaluation=True
    )
    rows = rows.to(dtype=torch.float64, device=torch.device("cpu"))
    selected_rows = (
        None if first_order is None else Rows(rows.slice(first_order.start, first_order.stop), len(first_order))
    )
    mode = None if selected_rows is None else choose_mode(prepared, selected_rows)
    checkpoint_set = set(checkpoints)
    checkpoint_states: dict[int, State] = {}
    end_outputs: list[Tensor] = []
    first_state: State = {}
    previous_state: State = {}
    first_order_total: Tensor | None = None
    for t, state in replay(run, model, loss=loss, forward=forward):
        if mode is not None and selected_rows is not None and t > 0:
            _load_state(prepared, previous_state)
            weight_change = {name: state[name].double() - previous_state[name].double() for name in prepared.parameters}
            output_change = Linearized(
                prepared, selected_rows.slice(0, selected_rows.n), selected_rows.n, mode=mode
            ).jvp(weight_change)
            first_order_total = output_change if first_order_total is None else first_order_total + output_change
        if t in checkpoint_set:
            checkpoint_states[t] = state
        if t in (0, len(run)):
            first_state = first_state or state
            end_outputs.append(outputs_at(prepared, state, rows))
        previous_state = state
        progress(t, len(run))
    return TrajectoryPass(
        first_state, previous_state, end_outputs[0], end_outputs[-1], first_order_total, checkpoint_states
    )


def checkpoint_steps(steps: int, count: int) -> list[int]:
    """Return about ``count`` (at least two) evenly spaced step numbers from 0 to ``steps``, in increasing order."""
    return sorted({round(float(t)) for t in np.linspace(0, steps, max(2, count))})


def measure_movement(
    kernel: KernelAtWeights, states: dict[int, State], targets: Tensor, *, memory: int, seed: int
) -> tuple[KernelMovement, ...]:
    """Return for every checkpoint the change of the kernel since the first one, and its alignment with the targets.

    ``states`` maps step numbers to model states, ``targets`` are those of the rows of the kernel, and ``seed`` determines
    the permutations of the null control. An alignment is NaN where it is undefined.
    """
    plan = kernel.plan(memory)
    labels = as_tensor(targets, "y")
    generator = torch.Generator().manual_seed(seed)
    permutations = [torch.randperm(len(labels), generator=generator) for _ in range(N_PERMUTATIONS)]
    movements: list[KernelMovement] = []
    K_initial: Tensor | None = None
    previous_checkpoint: tuple[int, Tensor] | None = None
    for t, state in sorted(states.items()):
        K = kernel.evaluate(state, plan).double().cpu()
        K = (K + K.T) / 2
        K_initial = K if K_initial is None else K_initial
        null_alignments = np.array([_alignment(K, labels[permutation]) for permutation in permutations])
        movements.append(
            KernelMovement(
                step=t,
                distance=kernel_distance(K, K_initial),
                change=relative_distance(K, K_initial),
                velocity=float("nan")
                if previous_checkpoint is None
                else kernel_distance(previous_checkpoint[1], K) / (t - previous_checkpoint[0]),
                alignment=_alignment(K, labels),
                null_alignment=float(null_alignments.mean()),
                null_spread=float(null_alignments.std(ddof=1)),
            )
        )
        previous_checkpoint = t, K
    return tuple(movements)


def concatenate_rows(first: Rows, second: Rows) -> Rows:
    """Return one set of rows: the inputs of ``first`` followed by those of ``second``, in the dtype of ``first``."""
    leaves: list[Tensor] = []
    second.map(lambda leaf: leaves.append(leaf) or leaf)
    remaining = iter(leaves)
    return Rows(first.map(lambda leaf: torch.cat([leaf, next(remaining).to(leaf.dtype)])), first.n + second.n)


def outputs_at(prepared: PreparedModel, state: State, rows: Rows) -> Tensor:
    """Return the outputs (n, C) of the model on the n rows, with the weights and buffers in ``state``."""
    _load_state(prepared, state)
    with torch.no_grad():
        return prepared.outputs(rows.slice(0, rows.n), rows.n).detach().clone()


def tangent_times_weights(prepared: PreparedModel, state: State, weights: State, rows: Rows) -> Tensor:
    """Return J w, (n, C), where J is the Jacobian of the outputs of the n rows at ``state``.

    The vector w holds the entries of ``weights`` for the differentiated parameters.
    """
    rows = rows.to(dtype=prepared.dtype, device=prepared.device)
    mode = choose_mode(prepared, rows)
    _load_state(prepared, state)
    weight_direction = {name: weights[name].to(parameter) for name, parameter in prepared.parameters.items()}
    return Linearized(prepared, rows.slice(0, rows.n), rows.n, mode=mode).jvp(weight_direction).detach()


def _alignment(K: Tensor, y: Tensor) -> float:
    """Return the centered alignment of the kernel K (n, n) with the targets y, or NaN if it is undefined."""
    try:
        return centered_target_alignment(K, y)
    except NumericalError:  # undefined for equal targets or a constant kernel
        return float("nan")


def _load_state(prepared: PreparedModel, state: State) -> None:
    """Copy the tensors of ``state`` into the parameters and buffers of the same name in the prepared model."""
    module = prepared.module
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name in state:
                tensor.copy_(state[name])
