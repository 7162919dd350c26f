"""Compare a trained network with kernel machines that are frozen, fitted or summed along its run."""

import dataclasses
import math
from collections.abc import Callable, Collection
from typing import Literal

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Batch, Forward, Rows, as_rows
from kernelmem.core.checks import ArrayLike, as_names, as_pair, as_tensor, check_choice, check_instance, describe
from kernelmem.core.errors import InputError
from kernelmem.core.options import Progress, as_bytes, as_progress
from kernelmem.kernel_machines.equivalence.fits import KernelFits, RunOptions
from kernelmem.kernel_machines.equivalence.options import ComparisonOptions
from kernelmem.kernel_machines.equivalence.result import METHODS, KernelMachineComparison, MachineFit, score_fit
from kernelmem.kernel_machines.equivalence.trajectory import (
    checkpoint_steps,
    concatenate_rows,
    measure_movement,
    trajectory_pass,
)
from kernelmem.kernel_machines.linearized.recorded_sgd import RecordedSGD
from kernelmem.recording.run import Run
from kernelmem.trajectory.argument_checks import check_run
from kernelmem.trajectory.ledger.ledger import ledger


def compare_kernel_machines(
    run: Run,
    model: nn.Module,
    x: Batch,
    *,
    data: tuple[Batch, ArrayLike],
    methods: Collection[str] | None = None,
    outputs: Literal["full", "trace"] = "full",
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    forward: Forward | None = None,
    options: ComparisonOptions | None = None,
    progress: Progress = None,
) -> KernelMachineComparison:
    """Compare a trained network with the kernel machines of its run, on test rows x.

    =================== ====================================================================================
    method              outputs on test rows
    =================== ====================================================================================
    sgd_initial         linearization at w_0: f_0 + K_0 a, with a from the recorded steps, batches and loss
    sgd_final           the same with the kernel at w_T
    sgd_path            the same with the mean kernel of the path, weighted by learning rates (equally if parameter
                        groups have different rates)
    domingos_constant   f_0 − K_path Σ_t h_t ∂ℓ_i/∂f: Domingos 2020 with coefficients that do not depend on x
    ridge_initial       f_0 + K_0 α, kernel ridge fitted to f_T − f_0 on the training rows (NTK surrogate)
    ridge_final         the same with the kernel at w_T
    ridge_path          the same with the mean kernel of the path
    null                ridge_path, fitted to the outputs permuted over training rows
    first_order_ledger  f_0 + Σ_t J(x; w_t) (w_{t+1} − w_t): first-order change of every step
    domingos            Domingos' kernel machine, whose coefficients depend on x, on ``domingos_rows`` rows
    exact_ledger        :func:`kernelmem.ledger`, on ``ledger_rows`` rows
    =================== ====================================================================================

    Errors are relative to the change f_T − f_0: predicting no change has error 1. A frozen kernel whose learning rate times
    curvature reaches the stability limit "diverges"; a method that the run does not admit (Adam in function space) is
    "undefined". The result gives the number or the reason.

    Args:
        run: recorded by :class:`kernelmem.Recorder`.
        model: the module that was trained, in any state; never changed. Analyzed in eval mode and float64.
        x: inputs of the m test rows.
        data: (inputs, targets) of all n training examples, in the order of their ids in the run.
        methods: names of methods in the table; None: all of them.
        outputs: "full": kernels between all pairs of outputs; "trace": their mean over outputs, used for each output
            separately, an approximation C² times smaller.
        loss: the per-example loss, if the run was recorded with a callable.
        forward: maps (model, batch) to (n, C) outputs.
        options: ridge, quadrature, numbers of rows, seed and memory; None: the defaults.
        progress: counts the steps of the first of up to four passes along the run.

    Raises:
        InputError: a method is unknown, ``data`` has fewer rows than the run has examples, or there is too little memory.
        NumericalError: a kernel is not finite, or the ridge is lost in rounding.

    Cost: two tangent kernels of n + m rows; the path kernel n_nodes · T / stride of them, most of the time; (nC)³ for a
    factorization and an eigenvalue of each full kernel; O(n B C²) per step and frozen kernel; the ledgers and ``domingos``
    as documented there, with T · domingos_rows · n tangents. Memory 8 (n + m)² C² bytes (8 (n + m) n C² if m > n) for each
    of three kernels, and four times as much again while one is computed. For a quick look leave out the path methods,
    ``domingos`` and ``exact_ledger``.

    Source: Domingos 2020; Fort et al. 2020 (movement of the kernel); Long 2021 (after-kernel); Atanasov et al. 2022.
    """
    options = ComparisonOptions() if options is None else options
    check_instance(options, "options", ComparisonOptions)
    check_run(run, model)
    method_names = _select_methods(methods)
    check_choice(outputs, "outputs", ("full", "trace"))
    n_steps, (x_train, y_train) = len(run), as_pair(data, "data")
    rows, examples = as_rows(x, "x"), as_rows(x_train, "data")
    targets = as_tensor(y_train, "y of data")
    n_recorded = 1 + max(int(step.examples.max()) for step in run.steps)
    if examples.n < n_recorded or len(targets) != examples.n:
        raise InputError(
            f"data of {examples.n} rows and {len(targets)} targets, for a run with example ids up to {n_recorded - 1}",
            expected=f"one target per row, and at least {n_recorded} rows",
            hint="pass all training examples, in the order of their ids",
        )
    n, n_test = examples.n, rows.n
    movement_steps = checkpoint_steps(n_steps, options.checkpoints) if options.checkpoints else []
    all_rows = concatenate_rows(examples, rows)
    trajectory = trajectory_pass(
        run,
        model,
        all_rows,
        first_order=range(n, n + n_test) if "first_order_ledger" in method_names else None,
        checkpoints=movement_steps,
        loss=loss,
        forward=forward,
        progress=as_progress(progress, "comparing kernel machines"),
    )
    run_options: RunOptions = {"loss": loss, "forward": forward}
    fits = KernelFits(
        run, model, examples, all_rows, trajectory, outputs, as_bytes(options.memory), method_names, run_options
    )
    fits.fit_kernels(options)
    final_outputs, initial_outputs = trajectory.final_outputs[n:], trajectory.initial_outputs[n:]
    if trajectory.first_order is not None:
        fits.predictions["first_order_ledger"] = initial_outputs + trajectory.first_order
    cancellation = math.nan
    if "exact_ledger" in method_names:
        exact_ledger = ledger(run, model, rows.slice(0, min(options.ledger_rows, n_test)), **run_options)
        output_change = (
            exact_ledger.contributions.sum(1) + exact_ledger.decay + exact_ledger.rounding + exact_ledger.buffers
        )
        fits.predictions["exact_ledger"] = exact_ledger.initial + output_change
        fits.diagnostics["exact_ledger"] = {"residual": exact_ledger.largest_residual}
        cancellation = float(exact_ledger.cancellation.median())
    if "domingos" in method_names:
        fits.fit_domingos(rows.slice(0, min(options.domingos_rows, n_test)), (x_train, targets))
    kernel_movement = ()
    if movement_steps:
        movement_rows = torch.linspace(0, n - 1, min(options.movement_rows, n)).round().long()
        kernel = fits.kernel_at_weights(Rows(examples.take(movement_rows), len(movement_rows)), None, "trace")
        kernel_movement = measure_movement(
            kernel, trajectory.checkpoint_states, targets[movement_rows], memory=fits.memory, seed=options.seed
        )
    return KernelMachineComparison(
        fits=tuple(_score_method(name, fits, final_outputs, initial_outputs, options.seed) for name in method_names),
        movement=kernel_movement,
        predictions={name: fits.predictions[name] for name in method_names if name in fits.predictions},
        network=final_outputs,
        initial=initial_outputs,
        kernel_change=fits.kernel_change,
        kernel_distance=fits.kernel_distance,
        limit=fits.recorded.limit if isinstance(fits.recorded, RecordedSGD) else math.nan,
        path_error=fits.path_error,
        cancellation=cancellation,
        n=n,
        steps=n_steps,
    )


def _score_method(name: str, fits: KernelFits, network: Tensor, initial: Tensor, seed: int) -> MachineFit:
    """Return the errors of one method relative to the network's outputs on the test rows.

    If the method has no predictions in ``fits``, the result holds the status and the reason, and its errors are NaN.
    ``network`` and ``initial`` (m, C) are the outputs of the trained and of the untrained network.
    """
    if name in fits.predictions:
        fit = score_fit(name, fits.predictions[name], network, initial, seed=seed)
    else:
        fit = MachineFit(name, *fits.failures[name])
    return dataclasses.replace(fit, **fits.diagnostics.get(name, {}))


def _select_methods(methods: Collection[str] | None) -> tuple[str, ...]:
    """Check the names of the methods and return them in the order of :data:`METHODS`; None selects all methods."""
    if methods is None:
        return tuple(METHODS)
    methods = as_names(methods, "methods") or []
    if not methods or any(name not in METHODS for name in methods):
        raise InputError(
            f"methods={describe(methods)}",
            expected=f"a list of some of {', '.join(METHODS)}",
            hint='pass methods=["sgd_initial", "ridge_path"]',
        )
    return tuple(name for name in METHODS if name in methods)
