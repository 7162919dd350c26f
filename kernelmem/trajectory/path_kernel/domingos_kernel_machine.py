r"""Kernel machine of Domingos 2020: one atom per example, with coefficients that depend on x.

    f_T(x) = b(x) + Σ_i K(x, x_i) a_i(x),    b = f_0,    a_i(x) = −K(x, x_i)⁻¹ K_L(x, x_i),
    K(x, x_i) = Σ_t h_t ∫₀¹ J_{t,s}(x) J_{t,s}(x_i)ᵀ ds                        the path kernel, C x C
    K_L(x, x_i) = Σ_{t: i in batch t} h_t (1/B_t) ∫₀¹ J_{t,s}(x) ds J(x_i; w_t)ᵀ ∂ℓ_i/∂f at w_t    its weighted form, C

The weighted form takes the gradients of the examples where the optimizer took them, at the start of each step, so that
b − Σ_i K_L is the trained network for any learning rate, up to quadrature and rounding. K and a_i separate only by
division: any invertible K would do, and with a_i that do not depend on x, as in a kernel machine, the sum is another function
(``constant_predictions``).

Source: Domingos 2020; gradients at the starts of steps: Bell et al. 2023.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Batch, as_rows
from kernelmem.core.checks import ArrayLike, as_pair
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.core.models.torch_func import exclusive
from kernelmem.core.options import MEMORY
from kernelmem.recording.gradient_check import Forward
from kernelmem.recording.replay import replay
from kernelmem.recording.run import Run
from kernelmem.training.losses import Loss
from kernelmem.trajectory.argument_checks import check_run
from kernelmem.trajectory.integration.quadrature import gauss_legendre
from kernelmem.trajectory.network.network import Network, each_output
from kernelmem.trajectory.network.shared_passes import with_separate_passes_if_needed
from kernelmem.trajectory.path_kernel.example_gradients import StepExamples
from kernelmem.trajectory.path_kernel.path_kernel import (
    PathKernelOptions,
    moved_parameters,
    path_kernel,
    step_learning_rate,
)

if TYPE_CHECKING:
    import pandas

SINGULAR_VALUE_RATIO = 1e-10  # singular values of K below this fraction of the largest are treated as zero


@dataclass(frozen=True, eq=False, repr=False)
class DomingosKernelMachine(Result):
    """Kernel K, kernel K_L weighted with loss derivatives, and initial outputs b on m rows for n examples: float64."""

    kernel: Tensor  # (m, n, C, C)
    weighted: Tensor  # (m, n, C)
    initial: Tensor  # (m, C): b(x)
    final: Tensor  # (m, C): the trained network
    summed_derivatives: Tensor  # (n, C): Σ_t h_t (1/B_t) ∂ℓ_i/∂f
    total_time: float  # Σ_t h_t

    @property
    def coefficients(self) -> Tensor:
        """a_i(x) = −K⁻¹ K_L (the shortest, where K is singular): (m, n, C)."""
        inverse = torch.linalg.pinv(self.kernel, rtol=SINGULAR_VALUE_RATIO)
        return -(inverse @ self.weighted[..., None])[..., 0]

    @property
    def predictions(self) -> Tensor:
        """The trained network, b − Σ_i K_L(x, x_i): (m, C)."""
        return self.initial - self.weighted.sum(1)

    @property
    def residual(self) -> Tensor:
        """Network minus predictions, left by quadrature and rounding: (m, C)."""
        return self.final - self.predictions

    @property
    def constant_predictions(self) -> Tensor:
        """Predictions (m, C) with coefficients that do not depend on x: f_0 − Σ_i K̄ Σ_t h_t/B ∂ℓ_i/∂f.

        f_0 are the outputs before training, K̄ is the mean kernel, h_t the learning rate of step t, and B its batch
        size.
        """
        mean = self.kernel / self.total_time
        return self.initial - torch.einsum("mncd,nd->mc", mean, self.summed_derivatives)

    def to_frame(self) -> "pandas.DataFrame":
        """Return one row per row of x, example and output: the contribution −K_L(x, x_i)."""
        import pandas  # slow to import

        levels = [range(size) for size in self.weighted.shape]
        index = pandas.MultiIndex.from_product(levels, names=["row", "example", "output"])
        return pandas.DataFrame({"contribution": -self.weighted.flatten().numpy()}, index=index).reset_index()

    def __str__(self) -> str:
        size = float((self.final - self.initial).norm())
        error = float((self.final - self.constant_predictions).norm()) / size if size else 0.0
        return (
            f"Domingos kernel machine on {len(self.initial)} rows, {self.weighted.shape[1]:,} examples: largest residual"
            f" {float(self.residual.abs().max()):.1g}; with coefficients that do not depend on x, error {error:.1%} of the change"
        )


@exclusive()
@with_separate_passes_if_needed
def domingos_kernel_machine(
    run: Run,
    model: nn.Module,
    x: Batch,
    *,
    data: tuple[Batch, ArrayLike],
    n_nodes: int = 3,
    loss: Loss | None = None,
    forward: Forward | None = None,
    memory: int | str = MEMORY,
) -> DomingosKernelMachine:
    """Compute the path kernel and its weighted form for a run of plain gradient descent.

    Args:
        run: of torch.optim.SGD without momentum and weight decay; full batches or minibatches.
        model: the module that was trained, in any state; never changed.
        x: m rows.
        data: (x, y) of all n training examples, in the order of the recorded indices.
        n_nodes: Gauss-Legendre nodes per step.
        loss: the per-example loss, if the run was recorded with a callable.
        forward: maps (model, batch) to (n, C) outputs.
        memory: as in :class:`PathKernelOptions`.

    Raises:
        InputError: another optimizer (for these: km.ledger, km.exact_kernel_machine), fewer rows in ``data`` than examples.
        UnsupportedModelError: steps with dropout or batch statistics.

    Cost: n_nodes · T full tangent kernels of m x n rows and tangents of m rows, and T of every batch; memory m·n·C² numbers
    four times, and (m·C + B) P.
    """
    check_run(run, model)
    x_train, _ = as_pair(data, "data")
    steps = list(run.steps)
    groups = [group for step in steps for group in step.groups]
    if run.optimizer != "SGD" or any(g.get(name) for g in groups for name in ("momentum", "weight_decay", "maximize")):
        raise InputError(
            f"a run of {run.optimizer} with momentum, weight decay or a denominator",
            expected="plain gradient descent: torch.optim.SGD with a learning rate only",
            hint="use km.ledger for the contributions under other optimizers, km.exact_kernel_machine for their machine",
        )
    rows, examples = as_rows(x, "x").to(dtype=torch.float64, device=torch.device("cpu")), as_rows(x_train, "data")
    n_recorded = 1 + max(int(step.examples.max()) for step in steps)
    if examples.n < n_recorded:
        raise InputError(
            f"data of {examples.n} rows", expected=f"{n_recorded}, one for each example", hint="pass all of them"
        )
    parameters = moved_parameters(run, steps)
    step_examples = StepExamples(run, model, parameters=parameters, loss=loss, forward=forward)
    options = PathKernelOptions(
        weighting="time", n_nodes=n_nodes, loss=loss, dtype=torch.float64, device="cpu", memory=memory
    )
    kernel = path_kernel(run, model, rows, examples, outputs="full", forward=forward, options=options)
    eval_network = Network(model, rows, parameters=parameters, forward=forward)
    C, rule = eval_network.n_outputs, gauss_legendre(n_nodes)
    weighted = torch.zeros(rows.n, examples.n, C, dtype=torch.float64)
    summed_derivatives = torch.zeros(examples.n, C, dtype=torch.float64)
    end_outputs: list[Tensor] = []  # outputs before and after training
    for t, (before, after) in enumerate(pairwise(state for _, state in replay(run, model, loss=loss, forward=forward))):
        learning_rate = step_learning_rate(steps[t])
        derivatives, example_indices = step_examples.derivatives(steps[t], before)
        gradients = step_examples.tangents(steps[t], before, lambda f, _, v=derivatives: v[:, None])[:, 0]  # (B, P)
        summed_derivatives.index_add_(0, example_indices, learning_rate * derivatives)
        for node, weight in zip(rule.nodes, rule.weights, strict=True):
            interpolated = {
                name: torch.lerp(before[name].double(), after[name].double(), node) for name in eval_network.parameters
            }
            eval_network.set_state({**before, **interpolated})
            tangents = eval_network.tangents(rows, each_output)[0]  # (m, C, P)
            weighted.index_add_(
                1, example_indices, learning_rate * weight * torch.einsum("mcp,bp->mbc", tangents, gradients)
            )
        for state in (before, after) if t == 0 else (after,):
            eval_network.set_state(state)
            end_outputs = [*end_outputs[:1], eval_network.outputs(rows)]
    return DomingosKernelMachine(
        kernel.values, weighted, end_outputs[0], end_outputs[-1], summed_derivatives, kernel.total_weight
    )
