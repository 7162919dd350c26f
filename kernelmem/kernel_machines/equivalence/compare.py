"""Which kernel machine a trained network is: kernels frozen, fitted or summed along its run, held against it on test rows."""

import math
from collections.abc import Callable, Collection
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Rows, as_rows
from kernelmem.core.errors import InputError
from kernelmem.kernel_machines.equivalence.fits import KernelFits
from kernelmem.kernel_machines.equivalence.result import MACHINES, KernelMachineComparison, MachineFit, compare
from kernelmem.kernel_machines.equivalence.trajectory import checkpoints_of, concatenated, movement, trajectory_pass
from kernelmem.kernel_machines.linearized.recorded_sgd import Recorded
from kernelmem.kernels.ntk import as_bytes
from kernelmem.recording.run import Run
from kernelmem.trajectory.ledger.ledger import ledger

__all__ = ["KernelMachineComparison", "MachineFit", "compare_kernel_machines"]


def compare_kernel_machines(
    run: Run,
    model: nn.Module,
    data: tuple[Any, Any],
    x_test: Any,
    *,
    machines: Collection[str] | None = None,
    outputs: Literal["full", "trace"] = "full",
    ridge: float | Literal["loo"] = 1e-8,
    order: int = 1,
    every: int = 1,
    form_rows: int = 4,
    ledger_rows: int = 8,
    checkpoints: int = 9,
    movement_rows: int = 256,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    seed: int = 0,
    memory: int | str = "4GiB",
    progress: Callable[[int, int], None] | None = None,
) -> KernelMachineComparison:
    """Compare a trained network with the kernel machines of its run, on test rows.

    =================== ====================================================================================
    machine             outputs on test rows
    =================== ====================================================================================
    descent_initial     the linearization at w_0: f_0 + K_0 a, a from the recorded steps, batches and loss
    descent_final       the same with the kernel at w_T; descent_path with the mean kernel of the path, weighted by
                        learning rates (equally, where parameters have rates of their own)
    domingos_constant   f_0 − K_path Σ_t h_t ∂ℓ_i/∂f: Domingos 2020 with coefficients that do not depend on x
    ridge_initial       f_0 + K_0 α fitted to f_T − f_0 on the training rows; ridge_final, ridge_path alike
    null                ridge_path, fitted to the outputs permuted over training rows
    left_ledger         f_0 + Σ_t J(x; w_t) d_t: one tangent a step
    domingos            Domingos' form with coefficients that depend on x, on ``form_rows`` rows
    exact_ledger        :func:`kernelmem.ledger`, on ``ledger_rows`` rows
    =================== ====================================================================================

    Errors are relative to the change f_T − f_0, so that 1 is what predicting no change gives. Frozen descent whose learning
    rate times curvature reaches the limit of stability "diverges", with the figure; what a run has no form for (Adam in
    function space) is "undefined", with the reason.

    Args:
        run: what :class:`Recorder` wrote.
        model: the module that was trained, in any state; never changed. Analyzed in eval mode and float64.
        data: (x, y) of all n training examples, by their ordinals in the run.
        x_test: m rows.
        machines: which of the table; None: all.
        outputs: "full" kernels between all pairs of outputs; "trace": their mean over outputs, for each output by itself,
            an approximation C² times smaller.
        ridge: of the fits, times the kernel's largest eigenvalue; "loo": chosen by leave-one-out over rows (and outputs, of
            full kernels).
        order: nodes a step of the path kernel.
        every: k > 1: one step stands for k in the path kernel.
        form_rows: test rows of ``domingos``.
        ledger_rows: test rows of ``exact_ledger``.
        checkpoints: at how many moments the kernel's movement is measured; 0: none.
        movement_rows: on how many training rows, evenly spaced.
        loss: the per-example loss, where the run was recorded with a callable.
        forward: maps (model, batch) to (n, C) outputs.
        seed: of the permutations.
        memory: bytes for kernels.
        progress: called with (steps done, steps in all) of the first of up to four passes along the run.

    Raises:
        InputError: unknown machines, fewer rows in ``data`` than examples, too little memory.
        NumericalError: a kernel that is not finite, or a ridge lost in rounding.

    Cost: two tangent kernels of n + m rows; the path kernel order · T / every of them, most of the time; (nC)³ for a
    factorization and an eigenvalue of each full kernel; O(n B C²) a step for each frozen descent; the ledgers and
    ``domingos`` as documented there, with T · form_rows · n tangents. Memory 8 (n + m)² C² bytes (8 (n + m) n C² where
    m > n) for each of three kernels, and as much again four times while one is computed. Leave out the path machines,
    ``domingos`` and ``exact_ledger`` for a quick look.

    Source: Domingos 2020; Fort et al. 2020 (movement of the kernel); Long 2021 (after-kernel); Atanasov et al. 2022.
    """
    wanted = _wanted(machines)
    if outputs not in ("full", "trace") or not (ridge == "loo" or _positive(ridge)):
        raise InputError(
            f"outputs={outputs!r}, ridge={ridge!r}",
            expected='outputs "full" or "trace"; ridge "loo" or a number > 0, times the largest eigenvalue',
            hint='pass outputs="full", ridge=1e-8',
        )
    steps = list(run.steps)
    if not steps:
        raise InputError("a run of no step", expected="at least one", hint="record a step")
    rows, examples = as_rows(x_test, "x_test"), as_rows(data[0], "data")
    met = 1 + max(int(step.examples.max()) for step in steps)
    if examples.n < met or len(data[1]) != examples.n:
        raise InputError(
            f"data of {examples.n} rows and {len(data[1])} targets, a run that met example {met - 1}",
            expected=f"a target for each row, and at least {met} of them",
            hint="pass all training examples, in the order of their ordinals",
        )
    n, m = examples.n, rows.n
    left = range(n, n + m) if "left_ledger" in wanted else None
    moments = checkpoints_of(len(run), checkpoints) if checkpoints else []
    both = concatenated(examples, rows)
    own = trajectory_pass(
        run, model, both, left=left, checkpoints=moments, loss=loss, forward=forward, progress=progress
    )
    common = {"loss": loss, "forward": forward}
    job = KernelFits(run, model, examples, both, own, outputs, as_bytes(memory), wanted, common)
    job.frozen_and_fitted(ridge, order, every, seed)
    test, start = own.final[n:], own.initial[n:]
    if own.left is not None:
        job.predictions["left_ledger"] = start + own.left
    cancellation = math.nan
    if "exact_ledger" in wanted:
        account = ledger(run, model, x=rows.slice(0, min(ledger_rows, m)), **common)
        explained = account.initial + account.contributions.sum(1) + account.decay + account.rounding + account.buffers
        job.predictions["exact_ledger"] = explained
        job.more["exact_ledger"] = {"residual": account.largest_residual}
        cancellation = float(account.cancellation.median())
    if "domingos" in wanted:
        job.domingos(rows.slice(0, min(form_rows, m)), data)
    moved = ()
    if moments:
        picked = torch.linspace(0, n - 1, min(movement_rows, n)).round().long()
        kernel = job.moving(Rows(examples.take(picked), len(picked)), None, "trace")
        moved = movement(kernel, own.states, _at(data[1], picked), memory=job.memory, seed=seed)
    fits = []
    for name in MACHINES:
        more = job.more.get(name, {})
        if name in job.predictions:
            fits.append(compare(name, job.predictions[name], test, start, seed=seed, **more))
        elif name in wanted:
            status, note = job.without[name]
            fits.append(MachineFit(name, status, note, **more))
    limit = job.recorded.limit if isinstance(job.recorded, Recorded) else math.nan
    figures = (job.change, job.distance, limit, job.path_error, cancellation)
    predictions = {fit.name: job.predictions[fit.name] for fit in fits if fit.name in job.predictions}
    return KernelMachineComparison(tuple(fits), moved, predictions, test, start, *figures, n, len(run))


def _wanted(machines: Collection[str] | None) -> tuple[str, ...]:
    if machines is None:
        return tuple(MACHINES)
    unknown = [name for name in machines if name not in MACHINES]
    if unknown or isinstance(machines, str) or not machines:
        raise InputError(
            f"machines={machines!r}",
            expected=f"some of {', '.join(MACHINES)}",
            hint='pass machines=["descent_initial", "ridge_path"]',
        )
    return tuple(name for name in MACHINES if name in machines)


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _at(targets: Any, index: Tensor) -> Any:
    if isinstance(targets, Tensor):
        return targets[index]
    return torch.as_tensor(targets)[index]
