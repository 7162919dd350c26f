r"""The path kernel of a recorded run: the tangent kernel, averaged along the way that the weights took.

For weights w_0, ..., w_T with steps d_t = w_{t+1} − w_t and weights a_t of the steps,

    K(x, x') = Σ_t a_t ∫₀¹ J(x; w_t + s d_t) J(x'; w_t + s d_t)ᵀ ds,    J = ∂f/∂w.

A sum of Gram matrices with weights a_t >= 0, so symmetric and positive semidefinite. It is the kernel of Domingos 2020;
the network is the kernel machine of this kernel only for small steps and with coefficients that depend on x
(:mod:`kernelmem.trajectory.path_kernel.domingos_kernel_machine`); what is exact is :mod:`kernelmem.trajectory.path_kernel.exact_kernel_machine`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from kernelmem.core.errors import InputError, NumericalError
from kernelmem.core.result_files import Result
from kernelmem.kernels.ntk import Outputs, as_bytes
from kernelmem.recording.replay import replay
from kernelmem.recording.run import Run
from kernelmem.recording.storage.step import Step
from kernelmem.recording.verify_model import verify_model
from kernelmem.tangents.engine.plan import Plan
from kernelmem.trajectory.argument_checks import check_run
from kernelmem.trajectory.integration.quadrature import MOST_NODES, gauss_legendre
from kernelmem.trajectory.path_kernel.kernel_at_weights import KernelAtWeights

__all__ = ["PathKernel", "moved_parameters", "path_kernel", "step_rate"]

Weighting = Literal["mean", "time", "length"]
State = dict[str, Tensor]
SUMS = 4  # float64 results held: the sum, a step's integral, the one with one more node, and what is added to it
SAMPLE = 8  # steps at which one more node is tried


@dataclass(frozen=True, eq=False, repr=False)
class PathKernel(Result):
    """A path kernel and how far it may be off. NumPy reads it as an array.

    Of N rows with themselves (no y, outputs="trace" or "pseudo") it is a ``kernel=`` of the estimators: X are then row
    numbers, so that one pass along the run serves training and test rows, and every split of them. Clones share it.
    """

    values: Tensor = field(repr=False)  # (n, m), (n, m, C) or (n, m, C, C), as outputs= says
    weighting: Weighting
    order: int  # Gauss-Legendre nodes a step
    every: int  # 1: all steps; k: one step stands for k, an estimate
    quadrature_error: float  # estimate, relative to the kernel (Frobenius norms)
    thinning_error: float  # likewise; 0 where no step was left out
    evaluations: int  # tangent kernels that were computed
    total_weight: float  # Σ_t a_t: 1, the training time, or the length of the path

    @property
    def error(self) -> float:
        """Estimated relative error, ‖K − K̂‖ / ‖K̂‖ in Frobenius norms."""
        return self.quadrature_error + self.thinning_error

    @property
    def shape(self) -> torch.Size:
        """That of the values."""
        return self.values.shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The values as a NumPy array."""
        found = self.values.cpu().numpy()
        return np.array(found, dtype=dtype) if copy else found.astype(dtype or found.dtype, copy=False)

    def __sklearn_clone__(self) -> "PathKernel":
        return self

    def __str__(self) -> str:
        which = "all steps" if self.every == 1 else f"an estimate from one step in {self.every}"
        return (
            f"path kernel ({self.weighting}) {tuple(self.shape)}, {self.order} nodes a step, {which};"
            f" estimated relative error {self.error:.1g}; {self.evaluations:,} tangent kernels"
        )


def path_kernel(
    run: Run,
    model: nn.Module,
    x: Any,
    y: Any = None,
    *,
    outputs: Outputs = "trace",
    target: Any = None,
    labels: Any = None,
    weighting: Weighting = "mean",
    order: int = 2,
    every: int = 1,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    memory: int | str = "4GiB",
    progress: Callable[[int, int], None] | None = None,
    verify: bool = True,
) -> PathKernel:
    r"""Compute the path kernel K(x, y) = Σ_t a_t ∫₀¹ J_{t,s}(x) J_{t,s}(y)ᵀ ds of a recorded run.

    =========== ============================= ==================================================
    weighting   a_t                           Σ_t a_t
    =========== ============================= ==================================================
    "mean"      1 / T                         1: the mean tangent kernel of the run
    "time"      learning rate of step t       training time (the kernel of Domingos 2020)
    "length"    ‖w_{t+1} − w_t‖               length of the path
    =========== ============================= ==================================================

    Args:
        run: what :class:`Recorder` wrote.
        model: the module that was trained, in any state; never changed. Analyzed in eval mode.
        x: n rows: tensor, array, dict or tuple of them, Dataset or DataLoader.
        y: m rows, likewise; None means y = x (symmetric to the bit, half the work).
        outputs: "trace", "diagonal", "full" or "pseudo", as in :func:`kernelmem.ntk`.
        target: a scalar of outputs and labels in place of ``outputs``, as there; its derivative is taken at every node.
        labels: (n,) integers for ``target``, or a pair for (x, y).
        weighting: see the table.
        order: Gauss-Legendre nodes a step: exact for a kernel that is a polynomial of degree 2·order − 1 of the step; the
            error is O(h^(2·order)) for smooth networks and O(h) where units have kinks (relu).
        every: k > 1 takes the middle one of every k steps for all of them: an estimate, with an error figure.
        loss: the per-example loss, where the run was recorded with a callable.
        forward: maps (model, batch) to (n, C) outputs.
        dtype: torch.float32 or torch.float64; None: the model's own. Sums over steps are in float64.
        device: where to compute; None: where the model is.
        memory: bytes that the call may allocate, weights of two states aside.
        progress: called with (steps done, steps in all).
        verify: compare a few rows with the dense definition at the first and the last step that is evaluated.

    Returns:
        PathKernel: values in ``dtype``; differentiated by the parameters that the optimizer held. ``quadrature_error`` is
        estimated from one more node at 8 steps spread over the run; ``thinning_error`` is the distance to the same kernel
        with steps three times as far apart, which is more than what was left out if that shrinks with ``every``.

    Raises:
        InputError: a run of no step, parameter groups of different learning rates with "time", ``every`` above a third of
            the steps, too little memory, a model that is not the recorded one, what :func:`kernelmem.ntk` refuses.
            NumericalError: NaN, with its step.

    Cost: order · T / every tangent kernels, and a few more for the error; memory as :func:`kernelmem.ntk`, and four to
    six float64 results.

    Source: Domingos 2020; quadrature and its error: here.
    """
    check_run(run, model)
    T = len(run)
    _check(weighting, order, every, T)
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
        dtype=dtype,
        device=device,
    )
    held = SUMS + 2 if every > 1 else SUMS
    budget = as_bytes(memory) - 8 * kernel.numbers * held
    if budget <= 0:
        raise InputError(
            f"memory={memory!r} for sums of {8 * kernel.numbers / 2**20:.3g} MiB each",
            expected=f"room for {held} of them and for a tangent kernel",
            hint='raise memory=, take fewer rows, or outputs="trace"',
        )
    plan = kernel.plan(budget)
    blocks = [range(start, min(start + every, T)) for start in range(0, T, every)]
    sums = _Sums(blocks)
    for t, (now, after) in enumerate(pairwise(state for _, state in replay(run, model, loss=loss, forward=forward))):
        block = blocks[t // every]
        sums.weigh(_weight(weighting, steps[t], now, after, kernel, T))
        index = t // every
        # Of an even number there are two in the middle: now the one, now the other, so that nothing leans to a side.
        if t == (block.start + block.stop - 1 + index % 2) // 2:
            sums.drop()
            integral = _integral(kernel, plan, now, after, order, check=verify and index in (0, len(blocks) - 1))
            if not bool(torch.isfinite(integral).all()):
                raise NumericalError(
                    f"NaN or infinite values in the tangent kernel of step {t}",
                    expected="finite derivatives along the run",
                    hint="check for a diverged run, or rows beyond the range of dtype=",
                )
            finer = _integral(kernel, plan, now, after, order + 1) if index in sums.sample else None
            sums.hold(integral, finer)
        if t + 1 == block.stop:
            sums.close()
        if progress is not None:
            progress(t + 1, T)
    checks = len(sums.sample) * (order + 1)
    quadrature, thinning = sums.errors()
    return PathKernel(
        sums.total.to(kernel.prepared.dtype),
        weighting,
        order,
        every,
        quadrature,
        thinning,
        len(blocks) * order + checks,
        sum(sums.weights),
    )


class _Sums:
    """The kernel as it grows, block of steps by block, with what its errors are estimated from."""

    def __init__(self, blocks: list[range]) -> None:
        count = len(blocks)
        self.sample = sorted({round(i) for i in np.linspace(0, count - 1, min(SAMPLE, count))})
        self.thinned = len(blocks[0]) > 1
        self.total = self.coarse = torch.zeros(())
        self.middle: Tensor | None = None  # of the three blocks that the coarse sum takes for one
        self.held: Tensor = torch.zeros(())
        self.weights: list[float] = []
        self.pending, self.waiting = 0.0, 0.0
        self.differences: list[float] = []  # ‖integral − finer‖ at the sampled blocks

    def weigh(self, weight: float) -> None:
        """One more step of the block."""
        self.pending += weight

    def hold(self, integral: Tensor, finer: Tensor | None) -> None:
        """What stands for the block."""
        self.held = integral
        if finer is not None:
            self.differences.append(float(finer.sub_(integral).norm()))

    def drop(self) -> None:
        """Let go of the block before, so that there is room for the next."""
        self.held = torch.zeros(())

    def close(self) -> None:
        """The block ends: its weight is known."""
        index = len(self.weights)
        if index == 0:
            self.total = torch.zeros_like(self.held)
            self.coarse = torch.zeros_like(self.held) if self.thinned else self.coarse
        self.total.add_(self.held, alpha=self.pending)
        if self.thinned:
            self.waiting += self.pending
            if index % 3 == 1 or self.middle is None:
                self.middle = self.held
            if index % 3 == 2:
                self._close_three()
        self.weights.append(self.pending)
        self.pending = 0.0

    def _close_three(self) -> None:
        if self.middle is not None:
            self.coarse.add_(self.middle, alpha=self.waiting)
        self.middle, self.waiting = None, 0.0

    def errors(self) -> tuple[float, float]:
        """Relative errors of the quadrature and of thinning."""
        size = float(self.total.norm())
        if size == 0:
            return 0.0, 0.0
        between = np.interp(np.arange(len(self.weights)), self.sample, self.differences)
        thinning = 0.0
        if self.thinned:
            self._close_three()
            thinning = float((self.total - self.coarse).norm()) / size
        return float(np.dot(between, self.weights)) / size, thinning


def moved_parameters(run: Run, steps: list[Step]) -> list[str]:
    """The parameters that the optimizer held in any step, in the order of the model."""
    held = {name for step in steps for group in step.groups for name in group["parameters"]}
    return [name for name in run.parameters if name in held]


def step_rate(step: Step) -> float:
    """The learning rate of a step.

    Raises:
        InputError: groups of parameters with different rates.
    """
    rates = {float(group["lr"]) for group in step.groups}
    if len(rates) != 1:
        raise InputError(
            f"a run whose step {step.index} has learning rates {sorted(rates)}",
            expected="one learning rate for all parameters",
            hint='pass weighting="mean" or "length"',
        )
    return rates.pop()


def _check(weighting: str, order: int, every: int, T: int) -> None:
    if weighting not in ("mean", "time", "length"):
        raise InputError(f"weighting={weighting!r}", expected='"mean", "time" or "length"', hint='pass "mean"')
    if not (isinstance(order, int) and not isinstance(order, bool) and 1 <= order <= MOST_NODES):
        raise InputError(f"order={order!r}", expected=f"a whole number of nodes, 1..{MOST_NODES}", hint="pass order=2")
    if not (isinstance(every, int) and every >= 1) or (every > 1 and 3 * every > T):
        raise InputError(
            f"every={every!r} for a run of {T} steps",
            expected=f"1..{max(1, T // 3)}: a third of the steps at most, so that its error can be estimated",
            hint="pass every=1 for all steps",
        )


def _weight(weighting: str, step: Step, now: State, after: State, kernel: KernelAtWeights, T: int) -> float:
    if weighting == "mean":
        return 1.0 / T
    if weighting == "time":
        return step_rate(step)
    names = kernel.prepared.parameters
    return sum(float((after[name].double() - now[name].double()).square().sum()) for name in names) ** 0.5


def _integral(
    kernel: KernelAtWeights, plan: Plan, now: State, after: State, order: int, *, check: bool = False
) -> Tensor:
    """∫₀¹ J J'ᵀ ds by the rule of that order, in float64; buffers are those of the start of the step."""
    rule = gauss_legendre(order)
    total = torch.zeros(())
    for i, (node, weight) in enumerate(zip(rule.nodes, rule.weights, strict=True)):
        state = dict(now)
        for name in kernel.prepared.parameters:
            state[name] = torch.lerp(now[name].double(), after[name].double(), node)
        found = kernel.at(state, plan, check=check and i == 0).double()
        total = found.mul_(weight) if i == 0 else total.add_(found, alpha=weight)
    return total
