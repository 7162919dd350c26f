"""From the last step to the first: every gradient's share in the change of what is explained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.ground.batches import Rows
from kernelmem.path.forward import Trace, loss_directions
from kernelmem.path.integral import mean_tangents
from kernelmem.path.network import Line, Network, seeded
from kernelmem.path.optimizers import filter_of
from kernelmem.path.targets import Explained
from kernelmem.runs.run import Run

__all__ = ["Lines", "sweep_back"]

START = 3  # nodes of the last step


@dataclass(frozen=True)
class Lines:
    """The ledger's lines, float64."""

    contributions: Tensor  # (m, n, k)
    decay: Tensor  # (m, k)
    rounding: Tensor  # (m, k)
    residuals: Tensor  # (T, m, k): of every step
    evaluations: Tensor  # (T,): tangents of a row


def sweep_back(
    run: Run,
    states: Sequence[dict[str, Tensor]],
    trained: Network,
    tested: Network,
    rows: Rows,
    what: Explained,
    along: Trace,
    *,
    n_examples: int,
    tolerance: float,
    order: int | None,
    progress: Callable[[int, int], None] | None = None,
) -> Lines:
    """Carry A_t(x) from step to step and contract it with the gradients of that step's examples.

    Cost: for every step the integral of m rows, one tangent of every example in the batch, m·k·P·B operations; memory
    m·k·P + B·P + m·n·k numbers.
    """
    T, m, k = len(along.steps), rows.n, len(what.names)
    kind = filter_of(run.optimizer)
    filters = {name: kind() for name in tested.selected}
    contributions = torch.zeros(m, n_examples, k, dtype=torch.float64)
    decay, rounding = torch.zeros(m, k, dtype=torch.float64), torch.zeros(m, k, dtype=torch.float64)
    residuals, evaluations = torch.zeros(T, m, k, dtype=torch.float64), torch.zeros(T, dtype=torch.float64)
    nodes = order or START
    for t in reversed(range(T)):
        now, after = states[t], states[t + 1]
        tested.set_state(now)
        line = Line(_doubled(now, tested), _doubled(after, tested), torch.empty(0))
        found = mean_tangents(tested, rows, line, what, order=nodes, tolerance=tolerance / max(1, T))
        residuals[t], evaluations[t] = found.residual, found.evaluations
        if order is None:
            # Fewer are tried now and then: late steps are short, and a failed try costs little.
            nodes = max(1, found.order - 1) if t % 8 == 0 else found.order
        rounding += found.tangents @ along.rounding[t]
        carried = torch.zeros_like(found.tangents)
        for name, moved in along.moved[t].items():
            own = found.tangents[..., tested.slices[name]].unflatten(-1, tested.selected[name].shape)
            share, part = filters[name].backward(own, moved)
            carried[..., tested.slices[name]] = share.flatten(2)
            if part is not None:
                decay += part
        batch, step = along.batches[t], along.steps[t]
        trained.set_state(now)
        trained.set_modes(step.evaluating)
        with seeded(step.random):
            gradients, _ = trained.tangents(batch.rows, loss_directions(along.loss, batch))
        shares = carried.flatten(0, 1) @ gradients[:, 0].T  # (m·k, B)
        contributions.index_add_(1, batch.examples, shares.unflatten(0, (m, k)).transpose(1, 2))
        if progress is not None:
            progress(T - t, T)
    return Lines(contributions, decay, rounding, residuals, evaluations)


def _doubled(state: dict[str, Tensor], network: Network) -> dict[str, Tensor]:
    return {name: state[name].double() for name in network.selected}
