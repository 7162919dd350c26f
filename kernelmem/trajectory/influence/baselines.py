r"""Gradient-product baselines for influence: TracIn and last checkpoint.

- TracIn: −Σ_{s: i in batch s} h_s v_i ⟨J_s(x), ∇ℓ_i(w_s)⟩, the change of φ to first order if every step were plain
  gradient descent. Momentum, adaptive denominators and decay are ignored.
- last checkpoint: −⟨J_T(x), ∇ℓ_i(w_T)⟩, in units without a learning rate: only ranks are meaningful.

Both have the sign of an influence: positive if more of the example raises φ.

Source: Pruthi et al. 2020; for the last checkpoint also Charpiat et al. 2019.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kernelmem.core.batches import Rows
from kernelmem.core.models.torch_func import exclusive
from kernelmem.trajectory.influence.training_program import TrainingProgram
from kernelmem.trajectory.network.shared_passes import with_separate_passes_if_needed
from kernelmem.trajectory.targets import TargetFunctions
from kernelmem.trajectory.trace import StepBatch


@exclusive()
@with_separate_passes_if_needed
def tracin(
    program: TrainingProgram,
    rows: Rows,
    target_functions: TargetFunctions,
    row_indices: Tensor,
    *,
    n_examples: int,
    advance: Callable[[int], None],
) -> Tensor:
    """Return the TracIn scores, (rows · k, n), of n training examples for k functions of the rows at ``row_indices``.

    Every recorded step is a checkpoint: a score is minus the sum over steps of the learning rate times the inner
    product of the gradients of a function and of the example's loss.

    Cost: for each step a gradient of the batch with its graph, a tangent of every row, and rows · k derivatives.
    """
    result = torch.zeros(len(row_indices) * len(target_functions.names), n_examples, dtype=torch.float64)
    for t in range(len(program)):
        tangents, _ = program.tangents(t, rows, target_functions, row_indices)
        alpha = _scaled(program, t, tangents)
        result.index_add_(1, program.batches[t].examples, program.gradient(t).shares(alpha))
        advance(1)
    return result


@exclusive()
@with_separate_passes_if_needed
def tracin_of_itself(
    program: TrainingProgram, rows: Rows, target_functions: TargetFunctions, *, advance: Callable[[int], None]
) -> Tensor:
    """Return the diagonal of :func:`tracin`, (n, k): the scores of n training examples for k functions of themselves.

    Cost: for each step a gradient of the batch with its graph, and a tangent and k derivatives of every row of the batch.
    """
    k = len(target_functions.names)
    result = torch.zeros(rows.n, k, dtype=torch.float64)
    for t in range(len(program)):
        examples = program.batches[t].examples
        chosen = examples.unique()
        tangents, _ = program.tangents(t, rows, target_functions, chosen)
        alpha = _scaled(program, t, tangents)
        shares = program.gradient(t).shares(alpha).unflatten(0, (len(chosen), k))
        result[chosen] += (shares * (examples == chosen[:, None])[:, None]).sum(2)
        advance(1)
    return result


def _scaled(program: TrainingProgram, t: int, tangents: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return minus the learning rates of step t times tangents; zero for parameters that the step does not update."""
    alpha = {name: torch.zeros_like(tangent) for name, tangent in tangents.items()}
    for name, options in program.updated_parameters(t).items():
        alpha[name] = (1 if options.get("maximize") else -1) * options["lr"] * tangents[name]
    return alpha


@exclusive()
@with_separate_passes_if_needed
def last_checkpoint(
    program: TrainingProgram, rows: Rows, target_functions: TargetFunctions, row_indices: Tensor, *, n_examples: int
) -> Tensor:
    """Return minus the inner products of gradients at the last weights, (rows · k, n), for k functions and n examples.

    The network is in eval mode, and each example has the input of the last step that used it and the loss weight 1.

    Cost: a gradient of every example with its graph, a tangent of every row, and rows · k derivatives per batch.
    """
    result = torch.zeros(len(row_indices) * len(target_functions.names), n_examples, dtype=torch.float64)
    tangents, _ = program.tangents(len(program), rows, target_functions, row_indices)
    alpha = {name: -tangent for name, tangent in tangents.items()}
    used_examples: set[int] = set()
    for batch in reversed(program.batches):
        new_positions = {
            example: position
            for position, example in enumerate(batch.examples.tolist())
            if example not in used_examples
        }
        if not new_positions:
            continue
        used_examples.update(new_positions)
        positions = torch.tensor(sorted(new_positions.values()))
        ones = torch.ones(len(positions), dtype=torch.float64)
        new_rows = Rows(batch.rows.take(positions.tolist()), len(positions))
        new_batch = StepBatch(new_rows, batch.targets[positions], batch.examples[positions], ones)
        result[:, new_batch.examples] = program.gradient_at_current_weights(new_batch).shares(alpha)
    return result
