r"""Gradient-product baselines for influence: TracIn and last checkpoint.

- TracIn: −Σ_{s: i in batch s} h_s v_i ⟨J_s(x), ∇ℓ_i(w_s)⟩, the change of φ to first order if every step were plain
  gradient descent. Momentum, adaptive denominators and decay are ignored.
- last checkpoint: −⟨J_T(x), ∇ℓ_i(w_T)⟩, in units without a learning rate: only ranks are meaningful.

Both have the sign of an influence: positive if more of the example raises φ.

Source: Pruthi et al. 2020; for the last checkpoint also Charpiat et al. 2019.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kernelmem.core.batches import Rows
from kernelmem.trajectory.influence.training_program import TrainingProgram
from kernelmem.trajectory.targets import TargetFunctions
from kernelmem.trajectory.trace import StepBatch


def tracin(
    program: TrainingProgram,
    rows: Rows,
    phi: TargetFunctions,
    index: Tensor,
    *,
    n_examples: int,
    advance: Callable[[int], None],
) -> Tensor:
    """Compute TracIn of the rows at ``index`` with every recorded step as a checkpoint: (rows · k, n).

    Cost: for each step a gradient of the batch with its graph, a tangent of every row, and rows · k derivatives.
    """
    result = torch.zeros(len(index) * len(phi.names), n_examples, dtype=torch.float64)
    for t in range(len(program)):
        tangents, _ = program.tangents(t, rows, phi, index)
        moving = program.moving(t)
        alpha = {name: torch.zeros_like(tangent) for name, tangent in tangents.items()}
        for name, options in moving.items():
            alpha[name] = (1 if options.get("maximize") else -1) * options["lr"] * tangents[name]
        result.index_add_(1, program.batches[t].examples, program.gradient(t).shares(alpha))
        advance(1)
    return result


def last_checkpoint(
    program: TrainingProgram, rows: Rows, phi: TargetFunctions, index: Tensor, *, n_examples: int
) -> Tensor:
    """Compute gradient products at the last weights in eval mode, with each example as it was last used: (rows · k, n).

    Cost: a gradient of every example with its graph, a tangent of every row, and rows · k derivatives per batch.
    """
    result = torch.zeros(len(index) * len(phi.names), n_examples, dtype=torch.float64)
    tangents, _ = program.tangents(len(program), rows, phi, index)
    alpha = {name: -tangent for name, tangent in tangents.items()}
    seen: set[int] = set()
    for batch in reversed(program.batches):
        new = {example: place for place, example in enumerate(batch.examples.tolist()) if example not in seen}
        if not new:
            continue
        seen.update(new)
        places = torch.tensor(sorted(new.values()))
        ones = torch.ones(len(places), dtype=torch.float64)
        new_rows = Rows(batch.rows.take(places.tolist()), len(places))
        part = StepBatch(new_rows, batch.targets[places], batch.examples[places], ones)
        result[:, part.examples] = program.gradient_here(part).shares(alpha)
    return result
