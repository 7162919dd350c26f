r"""What is commonly used in place of the counterfactual, to be compared with it: products of gradients.

- TracIn: −Σ_{s: i in batch s} h_s v_i ⟨J_s(x), ∇ℓ_i(w_s)⟩, the change of φ to first order if every step were one of plain
  gradient descent. Momentum, adaptive denominators and decay play no part.
- last checkpoint: −⟨J_T(x), ∇ℓ_i(w_T)⟩, in units without a learning rate: only its ranks mean something.

Both have the sign of an influence: positive where more of the example raises φ.

Source: Pruthi et al. 2020; for the last checkpoint alone also Charpiat et al. 2019.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kernelmem.core.batches import Rows
from kernelmem.trajectory.influence.training_program import TrainingProgram
from kernelmem.trajectory.targets import TargetFunctions
from kernelmem.trajectory.trace import StepBatch

__all__ = ["last_checkpoint", "tracin"]


def tracin(
    program: TrainingProgram,
    rows: Rows,
    phi: TargetFunctions,
    index: Tensor,
    *,
    n_examples: int,
    advance: Callable[[int], None],
) -> Tensor:
    """TracIn of the rows at ``index`` with every recorded step as a checkpoint: (rows · k, n).

    Cost: for each step a gradient of the batch with its graph, a tangent of every row, and rows · k derivatives.
    """
    result = torch.zeros(len(index) * len(phi.names), n_examples, dtype=torch.float64)
    for t in range(len(program)):
        tangents, _ = program.tangents(t, rows, phi, index)
        moving = program.moving(t)
        alpha = {name: torch.zeros_like(own) for name, own in tangents.items()}
        for name, options in moving.items():
            alpha[name] = (1 if options.get("maximize") else -1) * options["lr"] * tangents[name]
        result.index_add_(1, program.batches[t].examples, program.gradient(t).shares(alpha))
        advance(1)
    return result


def last_checkpoint(
    program: TrainingProgram, rows: Rows, phi: TargetFunctions, index: Tensor, *, n_examples: int
) -> Tensor:
    """The product of gradients at the last weights, all modules in eval mode, each example as it was last met: (rows · k, n).

    Cost: a gradient of every example with its graph, a tangent of every row, and rows · k derivatives a batch.
    """
    result = torch.zeros(len(index) * len(phi.names), n_examples, dtype=torch.float64)
    tangents, _ = program.tangents(len(program), rows, phi, index)
    alpha = {name: -own for name, own in tangents.items()}
    met: set[int] = set()
    for batch in reversed(program.batches):
        new = {example: place for place, example in enumerate(batch.examples.tolist()) if example not in met}
        if not new:
            continue
        met.update(new)
        places = torch.tensor(sorted(new.values()))
        ones = torch.ones(len(places), dtype=torch.float64)
        rows_met = Rows(batch.rows.take(places.tolist()), len(places))
        own = StepBatch(rows_met, batch.targets[places], batch.examples[places], ones)
        result[:, own.examples] = program.gradient_here(own).shares(alpha)
    return result
