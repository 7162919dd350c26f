r"""Path kernel of a recorded run: the tangent kernel averaged along the path of the weights.

For weights w_0, ..., w_T with steps d_t = w_{t+1} − w_t and step weights a_t,

    K(x, x') = Σ_t a_t ∫₀¹ J(x; w_t + s d_t) J(x'; w_t + s d_t)ᵀ ds,    J = ∂f/∂w.

A sum of Gram matrices with weights a_t >= 0 is symmetric and positive semidefinite. This is the kernel of Domingos 2020;
the network is a kernel machine of this kernel only for small steps and with coefficients that depend on x
(:mod:`kernelmem.trajectory.path_kernel.domingos_kernel_machine`); the exact form is
:mod:`kernelmem.trajectory.path_kernel.exact_kernel_machine`.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from kernelmem.core.batches import Batch, Rows
from kernelmem.core.checks import ArrayLike, as_count, as_device, as_flag, as_float_dtype, check_choice, check_instance
from kernelmem.core.errors import InputError, NumericalError
from kernelmem.core.files.result_files import Result
from kernelmem.core.models.torch_func import exclusive
from kernelmem.core.options import MEMORY, Progress, as_bytes, as_progress
from kernelmem.kernels.ntk import Outputs
from kernelmem.recording.gradient_check import Forward
from kernelmem.recording.replay import replay
from kernelmem.recording.run import Run
from kernelmem.recording.storage.step import Step
from kernelmem.recording.verify_model import verify_model
from kernelmem.tangents.engine.plan import Plan
from kernelmem.training.losses import Loss, as_loss
from kernelmem.trajectory.argument_checks import check_run
from kernelmem.trajectory.integration.quadrature import MAX_NODES, gauss_legendre
from kernelmem.trajectory.network.shared_passes import with_separate_passes_if_needed
from kernelmem.trajectory.path_kernel.kernel_at_weights import KernelAtWeights
from kernelmem.trajectory.targets import TargetLike

Weighting = Literal["mean", "time", "length"]
State = dict[str, Tensor]
N_SUMS = 4  # float64 results in memory: the sum, a step's integral, that with one more node, and the kernel at a node
N_SAMPLED = 8  # number of steps at which one more node is tried


@dataclass(frozen=True, eq=False, repr=False)
class PathKernel(Result):
    """A path kernel and its estimated error. NumPy reads it as an array.

    For N rows with themselves (no y, outputs="trace" or "pseudo") it is a ``kernel=`` of the estimators: X are then row
    numbers, so that one pass along the run serves training and test rows and every split of them. Clones share it.
    """

    values: Tensor = field(repr=False)  # (n, m), (n, m, C) or (n, m, C, C), depending on outputs=
    weighting: Weighting
    n_nodes: int  # Gauss-Legendre nodes per step
    stride: int  # 1: all steps; k: one step is used for k, an estimate
    quadrature_error: float  # estimate, relative to the kernel (Frobenius norms)
    thinning_error: float  # estimate, relative to the kernel; 0 if all steps were used
    evaluations: int  # tangent kernels that were computed
    total_weight: float  # Σ_t a_t: 1, the training time, or the length of the path

    @property
    def error(self) -> float:
        """Estimated relative error, ‖K − K̂‖ / ‖K̂‖ in Frobenius norms."""
        return self.quadrature_error + self.thinning_error

    @property
    def shape(self) -> torch.Size:
        """Shape of the values."""
        return self.values.shape

    def __array__(self, dtype: np.dtype | type | None = None, copy: bool | None = None) -> np.ndarray:
        """Return the values as a NumPy array."""
        values = self.values.cpu().numpy()
        return np.array(values, dtype=dtype) if copy else values.astype(dtype or values.dtype, copy=False)

    def __sklearn_clone__(self) -> "PathKernel":
        return self

    def __str__(self) -> str:
        steps = "all steps" if self.stride == 1 else f"estimated from one step in {self.stride}"
        return (
            f"path kernel ({self.weighting}) {tuple(self.shape)}, {self.n_nodes} nodes per step, {steps};"
            f" estimated relative error {self.error:.1g}; {self.evaluations:,} tangent kernels"
        )


@dataclass(frozen=True)
class PathKernelOptions:
    r"""Options of :func:`path_kernel`.

    =========== ============================= ==================================================
    weighting   a_t                           Σ_t a_t
    =========== ============================= ==================================================
    "mean"      1 / T                         1: the mean tangent kernel of the run
    "time"      learning rate of step t       training time (the kernel of Domingos 2020)
    "length"    ‖w_{t+1} − w_t‖               length of the path
    =========== ============================= ==================================================

    Raises:
        InputError: an unknown ``weighting``, ``n_nodes`` outside 1..32, ``stride`` below 1.
    """

    weighting: Weighting = "mean"
    n_nodes: int = 2
    """Gauss-Legendre nodes per step: exact for a kernel that is a polynomial of degree 2·n_nodes − 1 of the step; the error
    is O(h^(2·n_nodes)) for smooth networks and O(h) where units have kinks (relu)."""
    stride: int = 1
    """k > 1 uses the middle one of every k steps for all of them: an estimate, with an estimated error."""
    loss: Loss | None = None
    """The per-example loss, if the run was recorded with a callable."""
    dtype: torch.dtype | None = None
    """torch.float32 or torch.float64; None: the model's own. Sums over steps are in float64."""
    device: torch.device | str | None = None
    """Where to compute; None: where the model is."""
    memory: int | str = MEMORY
    """Bytes that the call may allocate, weights of two states aside."""
    verify: bool = True
    """Compare a few rows with the dense definition at the first and the last step that is evaluated."""

    def __post_init__(self) -> None:
        check_choice(self.weighting, "weighting", ("mean", "time", "length"))
        as_flag(self.verify, "verify")
        as_count(self.n_nodes, "n_nodes", maximum=MAX_NODES)
        as_count(self.stride, "stride")
        as_bytes(self.memory)
        if self.loss is not None:
            as_loss(self.loss)
        if self.dtype is not None:
            as_float_dtype(self.dtype)
        if self.device is not None:
            as_device(self.device)


@exclusive()
@with_separate_passes_if_needed
def path_kernel(
    run: Run,
    model: nn.Module,
    x: Batch | Rows,
    y: Batch | Rows | None = None,
    *,
    outputs: Outputs = "trace",
    target: TargetLike = None,
    labels: ArrayLike | tuple[ArrayLike, ArrayLike] | None = None,
    forward: Forward | None = None,
    options: PathKernelOptions = PathKernelOptions(),
    progress: Progress = None,
) -> PathKernel:
    r"""Compute the path kernel K(x, y) = Σ_t a_t ∫₀¹ J_{t,s}(x) J_{t,s}(y)ᵀ ds of a recorded run.

    Args:
        run: written by :class:`Recorder`.
        model: the module that was trained, in any state; never changed. Analyzed in eval mode.
        x: n rows: tensor, array, dict or tuple of them, Dataset or DataLoader.
        y: m rows, likewise; None means y = x (exactly symmetric, half the work).
        outputs: "trace", "diagonal", "full" or "pseudo", as in :func:`kernelmem.ntk`.
        target: a scalar of outputs and labels instead of ``outputs``, as there; its derivative is taken at every node.
        labels: (n,) integers for ``target``, or a pair for (x, y).
        forward: maps (model, batch) to (n, C) outputs.
        options: step weights, quadrature, and where to compute.
        progress: called with (steps done, T).

    Returns:
        PathKernel: values in ``options.dtype``; differentiated with respect to the parameters that the optimizer held.
        ``quadrature_error`` is estimated with one more node at 8 steps spread over the run; ``thinning_error`` is the
        distance to the same kernel with steps three times as far apart, an upper estimate if the error shrinks with
        ``stride``.

    Raises:
        InputError: a run without steps, parameter groups of different learning rates with "time", ``stride`` above a third
            of the steps, too little memory, a model other than the recorded one, and as in :func:`kernelmem.ntk`.
        NumericalError: NaN, with its step.

    Cost: n_nodes · T / stride tangent kernels, and a few more for the error; memory as :func:`kernelmem.ntk`, and four to
    six float64 results.

    Source: Domingos 2020; quadrature and its error: derived here.
    """
    check_run(run, model)
    check_instance(options, "options", PathKernelOptions)
    T, n_nodes, stride, loss = len(run), options.n_nodes, options.stride, options.loss
    if stride > 1 and 3 * stride > T:
        raise InputError(
            f"stride={stride!r} for a run of {T} steps",
            expected=f"1..{max(1, T // 3)}: at most a third of the steps, so that its error can be estimated",
            hint="pass stride=1 for all steps",
        )
    report = as_progress(progress, "path kernel", "step")
    verify_model(run, model, loss=loss, forward=forward)
    steps = list(run.steps)
    kernel = KernelAtWeights(
        model,
        x,
        y,
        outputs=outputs,
        target=target,
        labels=labels,
        parameters=moved_parameters(run, steps),
        forward=forward,
        dtype=options.dtype,
        device=options.device,
    )
    n_sums = N_SUMS + 2 if stride > 1 else N_SUMS
    budget = as_bytes(options.memory) - 8 * kernel.result_size * n_sums
    if budget <= 0:
        raise InputError(
            f"memory={options.memory!r} for sums of {8 * kernel.result_size / 2**20:.3g} MiB each",
            expected=f"room for {n_sums} of them and for a tangent kernel",
            hint='raise memory=, take fewer rows, or outputs="trace"',
        )
    plan = kernel.plan(budget)
    blocks = [range(start, min(start + stride, T)) for start in range(0, T, stride)]
    sums = _Sums(blocks)
    for t, (before, after) in enumerate(pairwise(state for _, state in replay(run, model, loss=loss, forward=forward))):
        index = t // stride
        block = blocks[index]
        sums.add_weight(_step_weight(options.weighting, steps[t], before, after, kernel, T))
        # A block of even length has two middle steps: take either in turn, so that the estimate has no bias to one side.
        if t == (block.start + block.stop - 1 + index % 2) // 2:
            sums.release()
            check = options.verify and index in (0, len(blocks) - 1)
            integral = _step_integral(kernel, plan, before, after, n_nodes, check=check)
            if not bool(torch.isfinite(integral).all()):
                raise NumericalError(
                    f"NaN or infinite values in the tangent kernel of step {t}",
                    expected="finite derivatives along the run",
                    hint="check for a diverged run, or rows beyond the range of dtype=",
                )
            finer = _step_integral(kernel, plan, before, after, n_nodes + 1) if index in sums.sampled_blocks else None
            sums.set_integral(integral, finer)
        if t + 1 == block.stop:
            sums.close_block()
        report(t + 1, T)
    n_checks = len(sums.sampled_blocks) * (n_nodes + 1)
    quadrature, thinning = sums.errors()
    return PathKernel(
        sums.total.to(kernel.prepared.dtype),
        options.weighting,
        n_nodes,
        stride,
        quadrature,
        thinning,
        len(blocks) * n_nodes + n_checks,
        sum(sums.weights),
    )


class _Sums:
    """Running sum of the kernel over blocks of steps, with the data for its error estimates."""

    def __init__(self, blocks: list[range]) -> None:
        """Start with a sum of zero; ``blocks`` are the ranges of steps that share one integral."""
        count = len(blocks)
        self.sampled_blocks = sorted({round(i) for i in np.linspace(0, count - 1, min(N_SAMPLED, count))})
        self.is_thinned = len(blocks[0]) > 1
        self.total = self.coarse = torch.zeros(())
        # Integral of the middle one of three blocks, used for all three in ``coarse``.
        self.middle_integral: Tensor | None = None
        self.integral: Tensor = torch.zeros(())  # of the current block
        self.weights: list[float] = []  # Σ a_t of every closed block
        self.block_weight, self.coarse_weight = 0.0, 0.0
        self.differences: list[float] = []  # ‖integral − finer‖ of the sampled blocks

    def add_weight(self, weight: float) -> None:
        """Add the weight a_t of one more step to the current block."""
        self.block_weight += weight

    def set_integral(self, integral: Tensor, finer: Tensor | None) -> None:
        """Set the integral for all steps of the block, and record its distance from ``finer`` if that is given.

        ``finer`` is the same integral with one more node.
        """
        self.integral = integral
        if finer is not None:
            self.differences.append(float(finer.sub_(integral).norm()))

    def release(self) -> None:
        """Free the memory of the last block's integral before the next is computed."""
        self.integral = torch.zeros(())

    def close_block(self) -> None:
        """Add the integral of the current block, times the sum of the weights of its steps, to the kernel."""
        index = len(self.weights)
        if index == 0:
            self.total = torch.zeros_like(self.integral)
            self.coarse = torch.zeros_like(self.integral) if self.is_thinned else self.coarse
        self.total.add_(self.integral, alpha=self.block_weight)
        if self.is_thinned:
            self.coarse_weight += self.block_weight
            if index % 3 == 1 or self.middle_integral is None:
                self.middle_integral = self.integral
            if index % 3 == 2:
                self._close_three_blocks()
        self.weights.append(self.block_weight)
        self.block_weight = 0.0

    def _close_three_blocks(self) -> None:
        if self.middle_integral is not None:
            self.coarse.add_(self.middle_integral, alpha=self.coarse_weight)
        self.middle_integral, self.coarse_weight = None, 0.0

    def errors(self) -> tuple[float, float]:
        """Return the estimated relative errors of the kernel that are due to quadrature and to thinning."""
        kernel_norm = float(self.total.norm())
        if kernel_norm == 0:
            return 0.0, 0.0
        differences = np.interp(np.arange(len(self.weights)), self.sampled_blocks, self.differences)
        thinning = 0.0
        if self.is_thinned:
            self._close_three_blocks()
            thinning = float((self.total - self.coarse).norm()) / kernel_norm
        return float(np.dot(differences, self.weights)) / kernel_norm, thinning


def moved_parameters(run: Run, steps: list[Step]) -> list[str]:
    """Return the parameters that the optimizer held in any step, in the order of the model."""
    moved_names = {name for step in steps for group in step.groups for name in group["parameters"]}
    return [name for name in run.parameters if name in moved_names]


def step_learning_rate(step: Step) -> float:
    """Return the learning rate of a step.

    Raises:
        InputError: parameter groups have different learning rates.
    """
    rates = {float(group["lr"]) for group in step.groups}
    if len(rates) != 1:
        raise InputError(
            f"a run whose step {step.index} has learning rates {sorted(rates)}",
            expected="one learning rate for all parameters",
            hint='pass weighting="mean" or "length"',
        )
    return rates.pop()


def _step_weight(
    weighting: Weighting, step: Step, before: State, after: State, kernel: KernelAtWeights, T: int
) -> float:
    """Return the weight of a step: 1 / T, its learning rate, or the distance between the weights before and after it."""
    if weighting == "mean":
        return 1.0 / T
    if weighting == "time":
        return step_learning_rate(step)
    names = kernel.prepared.parameters
    return sum(float((after[name].double() - before[name].double()).square().sum()) for name in names) ** 0.5


def _step_integral(
    kernel: KernelAtWeights, plan: Plan, before: State, after: State, n_nodes: int, *, check: bool = False
) -> Tensor:
    """Return the tangent kernel J(x) J(y)ᵀ averaged over the segment of one step, in float64.

    J is the derivative of the outputs with respect to the weights. The average is that of the Gauss-Legendre rule
    with ``n_nodes`` nodes; buffers are those at the start of the step.
    """
    rule = gauss_legendre(n_nodes)
    total = torch.zeros(())
    for i, (node, weight) in enumerate(zip(rule.nodes, rule.weights, strict=True)):
        state = dict(before)
        for name in kernel.prepared.parameters:
            state[name] = torch.lerp(before[name].double(), after[name].double(), node)
        K = kernel.evaluate(state, plan, check=check and i == 0).double()
        total = K.mul_(weight) if i == 0 else total.add_(K, alpha=weight)
    return total
