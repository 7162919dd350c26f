r"""Linear smoother of a network trained with squared loss, computed from its recorded run.

Along the run f_{t+1}(x) − f_t(x) = J̄_t(x)(w_{t+1} − w_t), J̄_t being the tangent averaged over the step (exact), and with
squared loss the gradient of a batch is Σ_b v_b J_t(x_b)ᵀ (f_t(x_b) − y_b). Optimizers are linear filters of the gradients,
given their realized statistics. With all tangents, statistics and clip factors fixed as recorded, weights and outputs after
every step are affine functions of the labels,

    w_t = a_t + B_t y,    f_t(x) = o_t(x) + S_t(x) y,

by a single recursion from the first step to the last, through momentum and weight decay. At the recorded labels they are
those of the network: f_T(x) = o_T(x) + S_T(x) y. With other labels the network would have had other tangents, so S is not
the derivative of training (except for a model that is linear in its weights).

Source: the sum over steps is from Jeffares, Curth and van der Schaar 2024, with tangents at the start of each step; tangents
averaged over the step, momentum, decay and adaptive optimizers are derived here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Batch, Forward, Rows, as_rows, named_leaves
from kernelmem.core.checks import ArrayLike
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.core.options import MEMORY, Progress, as_bytes, as_progress
from kernelmem.double_descent.variance.effective_parameters import EffectiveParameters, effective_parameters
from kernelmem.recording.run import Run
from kernelmem.recording.verify_model import verify_model
from kernelmem.training.losses import per_example_loss
from kernelmem.trajectory.argument_checks import check_run, number_of_examples
from kernelmem.trajectory.integration.quadrature import Quadrature
from kernelmem.trajectory.integration.step_integral import Integrand, dense_mean_tangents
from kernelmem.trajectory.network.network import Network, each_output
from kernelmem.trajectory.network.weight_blocks import Segments
from kernelmem.trajectory.optimizers import filter_class
from kernelmem.trajectory.path_kernel.example_gradients import StepExamples
from kernelmem.trajectory.path_kernel.path_kernel import moved_parameters
from kernelmem.trajectory.targets import as_target_functions
from kernelmem.trajectory.trace import RunTracer, StepBatch, TracedSteps

if TYPE_CHECKING:
    import pandas as pd

SQUARED_LOSSES = ("mse", "mse_mean")


@dataclass(frozen=True, eq=False, repr=False)
class RunSmoother(Result):
    """Affine map from the targets y to the network's outputs, f_T = offset + S y: n training and m test examples, float64.

    Attributes:
        S_train: (n, C, n, C) smoother of the training examples.
        S: (m, C, n, C) smoother of the test examples.
        targets: (n, C) recorded targets y; zeros for examples that were in no batch.
        offsets: (n + m, C) part of the outputs that does not depend on the targets; training examples first.
        outputs: (n + m, C) outputs of the network after training.
    """

    S_train: Tensor
    S: Tensor
    targets: Tensor
    offsets: Tensor
    outputs: Tensor

    @property
    def residual(self) -> Tensor:
        """The network's outputs minus offset + S y, (n + m, C) for n training and m test examples and C outputs."""
        S = torch.cat([self.S_train, self.S])
        return self.outputs - self.offsets - torch.einsum("rcnd,nd->rc", S, self.targets)

    @property
    def p_eff_train(self) -> EffectiveParameters:
        """Effective number of parameters on the training examples."""
        return effective_parameters(self.S_train)

    @property
    def p_eff(self) -> EffectiveParameters:
        """Effective number of parameters on the test examples.

        Raises:
            InputError: there are no test examples.
        """
        return effective_parameters(self.S)

    def to_frame(self) -> "pd.DataFrame":
        """Return a table with one row per example: its set (train or test), n |s(x)|² and its largest residual."""
        import pandas as pd

        n, m = len(self.S_train), len(self.S)
        values = [self.p_eff_train.per_example, *([self.p_eff.per_example] if m else [])]
        return pd.DataFrame(
            {
                "set": ["train"] * n + ["test"] * m,
                "effective_parameters": torch.cat(values).numpy(),
                "residual": self.residual.abs().amax(1).numpy(),
            }
        )

    def __str__(self) -> str:
        n, C, m = len(self.S_train), self.targets.shape[1], len(self.S)
        lines = [f"linear smoother of a run: {n:,} training examples, {m:,} test examples, C = {C}"]
        lines.append(f"  training: {self.p_eff_train}")
        if m:
            lines.append(f"  test:     {self.p_eff}")
        return "\n".join([*lines, f"  largest residual |f - offset - S y|: {float(self.residual.abs().max()):.1g}"])


def run_smoother(
    run: Run,
    model: nn.Module,
    x: Batch | None = None,
    *,
    data: tuple[Batch, ArrayLike],
    n_nodes: int = 3,
    tolerance: float = 1e-10,
    forward: Forward | None = None,
    memory: int | str = MEMORY,
    progress: Progress = None,
) -> RunSmoother:
    """Compute the affine map from labels to outputs of a small recorded run with squared loss, f_T(x) = offset(x) + S(x) y.

    ::

        G_t = Σ_b v_b J_t(x_b)ᵀ (F_t(x_b) − [y_b]),   ΔW_t = filter(G_t + λ W_t),   F_{t+1}(x) = F_t(x) + J̄_t(x) ΔW_t

    with W_t (P, nC + 1) and F_t (n + m, C, nC + 1) the weights and outputs as functions of the nC targets and 1.

    Args:
        run: recorded with loss "mse" or "mse_mean"; SGD (momentum, dampening, Nesterov), Adam, AdamW, RMSprop or Adagrad.
            Realized denominators of adaptive optimizers and clip factors are constants.
        model: the trained module, with any weights; it is not modified.
        x: m test examples; None: no test examples.
        data: (x, y) of all n training examples, in the order of the recorded indices. Targets are read from the run.
        n_nodes: initial number of quadrature nodes for the tangents averaged over a step.
        tolerance: largest allowed residual of the whole run, divided among its steps; 0: integrate to rounding error.
        forward: maps (model, batch) to (n, C) outputs.
        memory: bytes that W, F and the tangents may take, as a number or text such as "1GiB".
        progress: see :data:`kernelmem.core.options.Progress`.

    Returns:
        RunSmoother: S of the training examples (n, C, n, C) and of x (m, C, n, C), offsets, outputs; float64.

    Raises:
        InputError: the loss is not squared loss, inputs or targets of an example change between steps, more than ``memory``
            is needed, or :func:`kernelmem.ledger` rejects the run.
        UnsupportedModelError: the run has steps with dropout or batch statistics.

    Cost: for each of T steps, with N = n + m examples and batches of size B: (N + B) C · nC · P multiplications, and
    tangents of N examples at a few nodes. P = 1,000 weights and 100 examples of 10 classes: about 0.1 s per step.

    Source: Jeffares, Curth and van der Schaar 2024; exact form derived here.
    """
    check_run(run, model)
    quadrature = Quadrature(n_nodes, tolerance)
    if run.loss not in SQUARED_LOSSES:
        raise InputError(
            f"a run with the loss {run.loss.removeprefix('callable:')}",
            expected=f"squared loss, {' or '.join(SQUARED_LOSSES)} (with another loss the gradient is not linear in outputs and"
            " labels, so the network is not a linear smoother)",
            hint='train with Recorder(..., loss="mse"), or use km.influence for the effect of labels',
        )
    verify_model(run, model, forward=forward)
    report = as_progress(progress, "run smoother", "step")
    steps = list(run.steps)
    n = number_of_examples(data, 1 + max(int(step.examples.max()) for step in steps))
    train_rows, rows = _join_rows(data[0], x, n)
    parameters = moved_parameters(run, steps)
    examples = StepExamples(run, model, parameters=parameters, loss=None, forward=forward)
    network = Network(model, rows, parameters=parameters, forward=forward)
    _check_memory(memory, rows.n, n, network, max(len(step.examples) for step in steps))
    tracing = RunTracer(run, model, examples.network, examples.loss, None, forward)
    affine: _AffineState | None = None
    last: Mapping[str, Tensor] = {}
    for stretch in tracing.trace_forward():
        affine = affine or _AffineState(run, network, rows, n, stretch.states[0])
        last = stretch.states[-1]
        for i, batch in enumerate(stretch.batches):
            t = stretch.start + i
            _check_inputs(batch, train_rows, t)
            segment = Segments.from_states(stretch.states[i : i + 2], list(network.parameters))
            tangents = examples.tangents(stretch.steps[i], stretch.states[i], each_output)
            gradient = affine.gradient(batch, tangents, t)
            moved = affine.step(gradient, stretch, i)
            network.set_state(stretch.states[i])
            integrand = Integrand(network, rows, segment, affine.outputs_explained)
            mean = dense_mean_tangents(
                integrand, n_nodes=quadrature.n_nodes, tolerance=quadrature.tolerance / len(steps)
            )
            affine.outputs += torch.einsum("rcp,dp->rcd", mean, moved)
            report(t + 1, len(steps))
    assert affine is not None
    network.set_state(last)
    S = affine.outputs[..., :-1].unflatten(2, (n, network.n_outputs))
    return RunSmoother(
        S_train=S[:n].clone(),
        S=S[n:].clone(),
        targets=affine.targets,
        offsets=affine.outputs[..., -1].clone(),
        outputs=network.outputs(rows),
    )


class _AffineState:
    """Weights, optimizer state and outputs of a network as affine functions of the targets of n examples with C outputs.

    Each quantity has D = nC + 1 coefficients: one for each target, and the constant as the last.
    """

    def __init__(self, run: Run, network: Network, rows: Rows, n: int, initial: Mapping[str, Tensor]) -> None:
        """Start from the weights ``initial`` (parameter name to tensor), without dependence on the targets.

        ``rows`` are all examples whose outputs are followed; the first ``n`` are the training examples.
        """
        self.network, self.n, self.C = network, n, network.n_outputs
        self.outputs_explained = as_target_functions(None, None, rows.n, network.n_outputs)
        D = n * self.C + 1
        make_filter = filter_class(run.optimizer)
        self.filters = {name: make_filter() for name in network.parameters}
        self.optimizer_state: dict[str, dict[str, Tensor]] = {name: {} for name in network.parameters}
        network.set_state(initial)
        self.weights = torch.zeros(D, network.n_parameters, dtype=torch.float64)  # W, transposed
        self.weights[-1] = network.parameter_vector(initial)
        self.outputs = torch.zeros(rows.n, self.C, D, dtype=torch.float64)  # F
        self.outputs[..., -1] = network.outputs(rows)
        self.targets = torch.zeros(n, self.C, dtype=torch.float64)
        self.has_target = torch.zeros(n, dtype=torch.bool)
        self.gradient_scale = 1.0 if run.loss == "mse" else 2 / self.C

    def gradient(self, batch: StepBatch, tangents: Tensor, step_index: int) -> Tensor:
        """Return the gradient of the loss of a batch as an affine function of the targets, (D coefficients, P parameters).

        It is Σ_b v_b J(x_b)ᵀ (F(x_b) − y_b), with v the weights of the examples b, J their ``tangents`` (B, C, P) and F the
        current outputs as affine functions. The targets of the batch are recorded.
        """
        example_indices = batch.examples
        self._record_targets(example_indices, batch.targets, step_index)
        residual = self.outputs[example_indices]  # (B, C, D), a copy
        target_columns = example_indices[:, None] * self.C + torch.arange(
            self.C
        )  # (B, C) column of target c of example b
        residual.scatter_add_(2, target_columns[:, :, None], -torch.ones(*target_columns.shape, 1, dtype=torch.float64))
        weighted = residual * (self.gradient_scale * batch.weights)[:, None, None]
        return torch.einsum("bcd,bcp->dp", weighted, tangents)

    def step(self, gradient: Tensor, stretch: TracedSteps, i: int) -> Tensor:
        """Add step ``i`` of ``stretch`` to the weights and return their change, an affine function of the targets, (D, P).

        ``gradient`` (D, P) is that of the batch, for D coefficients and P parameters; rounding errors go into the constant.
        """
        change = torch.zeros_like(gradient)
        change[-1] = stretch.rounding[i]
        for name, moved in stretch.parameter_steps[i].items():
            columns, options = self.network.slices[name], moved.options
            block = -gradient[:, columns] if options.get("maximize") else gradient[:, columns]
            decay, decoupled = options.get("weight_decay", 0.0), self.filters[name].has_decoupled_decay(options)
            if decay and not decoupled:
                block = block + decay * self.weights[:, columns]
            change[:, columns] += self.filters[name].filter_gradients(block, moved, self.optimizer_state[name])
            if decay and decoupled:
                change[:, columns] -= options["lr"] * decay * self.weights[:, columns]
        self.weights += change
        return change

    def _record_targets(self, example_indices: Tensor, targets: Tensor, step_index: int) -> None:
        """Store the targets of a batch of B examples as (B, C) float64, whatever their form.

        They are minus the gradient of the squared loss at outputs 0.

        Raises:
            InputError: an example had other targets in an earlier step.
        """
        zero_outputs = torch.zeros(len(example_indices), self.C, dtype=torch.float64, requires_grad=True)
        loss = per_example_loss("mse")(zero_outputs, targets).sum()
        new_targets = -torch.autograd.grad(loss, zero_outputs)[0]
        is_recorded = self.has_target[example_indices]
        if not torch.equal(self.targets[example_indices][is_recorded], new_targets[is_recorded]):
            raise InputError(
                f"a run in which step {step_index} has other targets for an example than an earlier step",
                expected="one target for each example throughout the run",
                hint="record a run without mixed or redrawn targets",
            )
        self.targets[example_indices], self.has_target[example_indices] = new_targets, True


def _join_rows(x_train: Batch, x: Batch | None, n: int) -> tuple[Rows, Rows]:
    """Return the n training rows, and these followed by the test rows ``x`` (the same rows if ``x`` is None); float64.

    Raises:
        InputError: there are not n training rows, or the test rows have another shape.
    """
    float64_on_cpu = {"dtype": torch.float64, "device": torch.device("cpu")}
    train = as_rows(x_train, "data[0]").to(**float64_on_cpu)
    if train.n != n:
        raise InputError(
            f"data of {train.n} rows and {n} targets",
            expected="one target for each row",
            hint="pass data=(x_train, y_train)",
        )
    if x is None:
        return train, train
    test = as_rows(x, "x").to(**float64_on_cpu)
    leaves = [[leaf for _, leaf in named_leaves(rows.tree, "x")] for rows in (train, test)]
    shapes = [[tuple(leaf.shape[1:]) for leaf in side_leaves] for side_leaves in leaves]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"training rows of shape {shapes[0]} and test rows x of shape {shapes[1]}",
            expected="equal shapes",
            hint="pass test rows x of the same shape as the training rows",
        )
    joined_leaves = iter([torch.cat(leaf_pair) for leaf_pair in zip(*leaves, strict=True)])
    return train, Rows(train.map(lambda _: next(joined_leaves)), train.n + test.n)


def _check_inputs(batch: StepBatch, train: Rows, step_index: int) -> None:
    """Check that the inputs recorded for a step are those of the training rows ``train`` with the same indices.

    Raises:
        InputError: they differ.
    """
    recorded_leaves, data_leaves = named_leaves(batch.rows.tree, "x"), named_leaves(train.take(batch.examples), "x")
    are_equal = len(recorded_leaves) == len(data_leaves) and all(
        torch.equal(recorded, expected)
        for (_, recorded), (_, expected) in zip(recorded_leaves, data_leaves, strict=True)
    )
    if not are_equal:
        raise InputError(
            f"a run in which step {step_index} used other inputs than data[0] has for its examples",
            expected="the same inputs for an example throughout the run",
            hint="pass the training rows in the order of the recorded indices; augmentation is not supported",
        )


def _check_memory(memory: int | str, n_rows: int, n: int, network: Network, batch_size: int) -> None:
    """Check that affine maps and tangents of ``n_rows`` examples, n of them for training, fit into ``memory``; float64.

    Raises:
        InputError: they do not fit.
    """
    C, P = network.n_outputs, network.n_parameters
    D = n * C + 1
    n_bytes = 8 * (4 * D * P + 2 * (n_rows + batch_size) * C * P + 2 * n_rows * C * D)
    if n_bytes > as_bytes(memory):
        raise InputError(
            f"{n} training examples, {n_rows - n} test examples, {C} outputs and {P:,} weights,"
            f" which need {n_bytes / 2**20:,.0f} MiB",
            expected=f"at most memory={memory!r}",
            hint="use fewer examples or a smaller network, or raise memory",
        )
