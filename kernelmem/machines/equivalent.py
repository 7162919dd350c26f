"""Which kernel machine a trained network is: kernels frozen, fitted or summed along its run, held against it on test rows."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kernelmem.ground.batches import Rows, as_rows
from kernelmem.ground.errors import InputError, NumericalError, UnsupportedModelError
from kernelmem.kernels.alignment import kernel_distance, relative_distance
from kernelmem.kernels.ntk import as_bytes
from kernelmem.machines.along_run import AlongRun, along_run, checkpoints_of, concatenated, movement, pull_at
from kernelmem.machines.function_space import FunctionSpace, as_matrix
from kernelmem.machines.inverses import factorize
from kernelmem.machines.machine_table import MACHINES, EquivalentMachines, MachineFit, compare
from kernelmem.machines.recursion import largest_eigenvalue
from kernelmem.machines.ridge_choice import choose_ridge
from kernelmem.machines.same_descent import Recorded, recorded_descent, same_descent
from kernelmem.path.domingos import domingos_form
from kernelmem.path.examples import StepExamples
from kernelmem.path.kernel import moved_parameters, path_kernel, step_rate
from kernelmem.path.ledger import ledger
from kernelmem.path.moving import MovingKernel
from kernelmem.runs.replay import replay
from kernelmem.runs.run import Run
from kernelmem.tangents.prepare import prepare

__all__ = ["EquivalentMachines", "MachineFit", "equivalent_machines"]

KINDS = ("initial", "final", "path")
PLAIN = "only plain gradient descent has this form: SGD without momentum and weight decay, one learning rate"


def equivalent_machines(
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
) -> EquivalentMachines:
    """Compare a trained network with the kernel machines of its run, on test rows.

    =================== ====================================================================================
    machine             outputs on test rows
    =================== ====================================================================================
    descent_initial     the linearization at w_0: f_0 + K_0 a, a from the recorded steps, batches and loss
    descent_final       the same with the kernel at w_T, descent_path with the mean kernel of the path
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

    Cost: two tangent kernels of n + m with n rows; the path kernel order · T / every of them, most of the time; (nC)³ for a
    factorization and an eigenvalue of each full kernel; O(n B C²) a step for each frozen descent; the ledgers and
    ``domingos`` as documented there, with T · form_rows · n tangents. Memory 8 (n + m) n C² bytes for each of three kernels,
    and as much again four times while one is computed. Leave out the path machines, ``domingos`` and ``exact_ledger`` for a
    quick look.

    Source: Domingos 2020; Fort et al. 2020 (movement of the kernel); Long 2021 (after-kernel); Atanasov et al. 2022.
    """
    wanted = _wanted(machines)
    if outputs not in ("full", "trace") or not (ridge == "loo" or _positive(ridge)):
        raise InputError(
            f"outputs={outputs!r}, ridge={ridge!r}",
            expected='outputs "full" or "trace"; ridge "loo" or a number > 0, times the largest eigenvalue',
            do='pass outputs="full", ridge=1e-8',
        )
    steps = list(run.steps)
    if not steps:
        raise InputError("a run of no step", expected="at least one", do="record a step")
    rows, examples = as_rows(x_test, "x_test"), as_rows(data[0], "data")
    met = 1 + max(int(step.examples.max()) for step in steps)
    if examples.n < met or len(data[1]) != examples.n:
        raise InputError(
            f"data of {examples.n} rows and {len(data[1])} targets, a run that met example {met - 1}",
            expected=f"a target for each row, and at least {met} of them",
            do="pass all training examples, in the order of their ordinals",
        )
    n, m = examples.n, rows.n
    left = range(n, n + m) if "left_ledger" in wanted else None
    moments = checkpoints_of(len(run), checkpoints) if checkpoints else []
    both = concatenated(examples, rows)
    own = along_run(
        run, model, both, left=left, checkpoints=moments, loss=loss, forward=forward, progress=progress
    )
    common = {"loss": loss, "forward": forward}
    job = _Job(run, model, examples, both, own, outputs, as_bytes(memory), wanted, common)
    job.frozen_and_fitted(ridge, order, every, seed)
    test, start = own.final[n:], own.initial[n:]
    if own.left is not None:
        job.predictions["left_ledger"] = start + own.left
    cancellation = math.nan
    if "exact_ledger" in wanted:
        account = ledger(run, model, x=rows.slice(0, min(ledger_rows, m)), **common)
        lines = account.contributions.sum(1) + account.decay + account.rounding + account.buffers
        job.predictions["exact_ledger"] = account.initial + lines
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
    return EquivalentMachines(tuple(fits), moved, job.predictions, test, start, *figures, n, len(run))


@dataclass(eq=False)
class _Job:
    """The run, what was read of it, and what has been found so far."""

    run: Run
    model: nn.Module
    examples: Rows
    both: Rows
    own: AlongRun
    outputs: str
    memory: int
    wanted: tuple[str, ...]
    common: dict[str, Any]

    def __post_init__(self) -> None:
        self.parameters = moved_parameters(self.run, list(self.run.steps))
        self.recorded = recorded_descent(self.run, self.model, self.common["loss"], self.own.final.shape[1])
        self.predictions: dict[str, Tensor] = {}
        self.without: dict[str, tuple[str, str]] = {}
        self.more: dict[str, dict[str, float]] = {}
        self.change = self.distance = self.path_error = math.nan

    def moving(self, x: Rows, y: Rows | None, outputs: str) -> MovingKernel:
        return MovingKernel(
            self.model,
            x,
            y,
            outputs=outputs,
            target=None,
            labels=None,
            parameters=self.parameters,
            forward=self.common["forward"],
            dtype=torch.float64,
            device="cpu",
        )

    def frozen_and_fitted(self, ridge: float | str, order: int, every: int, seed: int) -> None:
        """The machines of each kernel in turn; a kernel lives no longer than it is needed."""
        needed = {kind: [n for n in self.wanted if n in _of_kernel(kind)] for kind in KINDS}
        self._refuse_too_much(sum(bool(own) for own in needed.values()))
        firsts: Tensor | None = None
        for kind in KINDS:
            if not needed[kind]:
                continue
            space = self._space(kind, order, every)
            if kind == "initial":
                firsts = space.matrix
            if kind == "final" and firsts is not None:
                self.change = relative_distance(space.matrix, firsts)
                self.distance = kernel_distance(self._trace(space.matrix), self._trace(firsts))
            largest = largest_eigenvalue(space.matrix)
            if f"descent_{kind}" in needed[kind]:
                self._descend(kind, space, largest)
            if f"ridge_{kind}" in needed[kind]:
                self._fit(f"ridge_{kind}", space, largest, ridge, None)
            if "null" in needed[kind]:
                order_of_rows = torch.randperm(space.n, generator=torch.Generator().manual_seed(seed))
                self._fit("null", space, largest, ridge, order_of_rows)
            if "domingos_constant" in needed[kind]:
                self._constant(space)

    def domingos(self, x: Any, data: tuple[Any, Any]) -> None:
        try:
            form = domingos_form(self.run, self.model, x, data=data, order=2, memory=self.memory, **self.common)
        except (InputError, UnsupportedModelError) as error:
            self.without["domingos"] = ("undefined", PLAIN if isinstance(error, InputError) else str(error))
            return
        self.predictions["domingos"] = form.predictions
        self.more["domingos"] = {"residual": float(form.residual.abs().max())}

    def _space(self, kind: str, order: int, every: int) -> FunctionSpace:
        n, C = self.examples.n, self.own.final.shape[1]
        if kind == "path":
            path = path_kernel(
                self.run,
                self.model,
                self.both,
                self.examples,
                outputs=self.outputs,  # type: ignore[arg-type]
                weighting=self._weighting(),
                order=order,
                every=every,
                dtype=torch.float64,
                device="cpu",
                memory=self.memory,
                **self.common,
            )
            self.path_error = path.error
            kernel = path.values / path.total_weight
        else:
            moving = self.moving(self.both, self.examples, self.outputs)
            state = self.own.first if kind == "initial" else self.own.last
            kernel = moving.at(state, moving.plan(self.memory), check=True)
        full = self.outputs == "full"
        if full:
            cross = kernel[n:].transpose(1, 2).reshape(-1, n * C)
            matrix = as_matrix(kernel[:n], n, C)
        else:
            kernel = kernel / C
            matrix, cross = as_matrix(kernel[:n], n, C), kernel[n:]
        pull = self._pull(kind)
        initial = self.own.initial
        return FunctionSpace(matrix, initial[:n], initial[:n], pull[:n], cross, initial[n:], pull[n:], full)

    def _weighting(self) -> Literal["time", "mean"]:
        try:
            rates = [step_rate(step) for step in self.run.steps]
        except InputError:  # groups of parameters with rates of their own
            return "mean"
        return "time" if min(rates) > 0 else "mean"

    def _pull(self, kind: str) -> Tensor:
        """J w_0 at the weights of the kernel; zeros where nothing decays."""
        if kind == "path" or not (isinstance(self.recorded, Recorded) and self.recorded.decays):
            return torch.zeros_like(self.own.initial)
        prepared = prepare(
            self.model,
            self.both,
            forward=self.common["forward"],
            parameters=self.parameters,
            dtype=torch.float64,
            device="cpu",
            evaluation=True,
        )
        state = self.own.first if kind == "initial" else self.own.last
        return pull_at(prepared, state, self.own.first, self.both)

    def _descend(self, kind: str, space: FunctionSpace, largest: float) -> None:
        name = f"descent_{kind}"
        if isinstance(self.recorded, str):
            self.without[name] = ("undefined", self.recorded)
            return
        if kind == "path" and self.recorded.decays:
            self.without[name] = ("undefined", "a mean kernel does not say where weight decay pulls the outputs")
            return
        stability = self.recorded.stability(largest, space.n)
        self.more[name] = {"stability": stability}
        if self.recorded.quadratic and stability >= self.recorded.limit:
            self.without[name] = ("diverges", f"lr times curvature {stability:.4g}, limit {self.recorded.limit:.4g}")
            return
        try:
            a, away = same_descent(self.recorded, space)
        except NumericalError as error:
            self.without[name] = ("diverges", error.given)
            return
        self._keep(name, space, a, away)

    def _fit(self, name: str, space: FunctionSpace, largest: float, ridge: float | str, order: Tensor | None) -> None:
        """Kernel ridge regression on the change of the network's outputs on the training rows."""
        change = self.own.final[: space.n] - self.own.initial[: space.n]
        targets = space.fold(change if order is None else change[order])
        value = choose_ridge(space.matrix, targets).ridge if ridge == "loo" else float(ridge) * largest
        system = factorize(space.matrix, targets, value)
        alpha = system.alpha()
        gap = (space.matrix @ alpha + value * alpha - targets).norm() / targets.norm().clamp_min(1e-300)
        self.more[name] = {"ridge": value, "condition": system.condition(), "residual": float(gap)}
        self._keep(name, space, alpha, alpha.new_zeros(()))

    def _constant(self, space: FunctionSpace) -> None:
        summed = _summed_derivatives(self.run, self.model, self.parameters, space, self.common)
        if isinstance(summed, str):
            self.without["domingos_constant"] = ("undefined", summed)
            return
        self._keep("domingos_constant", space, -space.fold(summed), summed.new_zeros(()))

    def _keep(self, name: str, space: FunctionSpace, a: Tensor, away: Tensor) -> None:
        found = space.outputs(a[None], away[None])[1]
        assert found is not None
        self.predictions[name] = found[0]

    def _trace(self, matrix: Tensor) -> Tensor:
        n = self.examples.n
        if len(matrix) == n:
            return matrix
        C = len(matrix) // n
        return matrix.view(n, C, n, C).diagonal(dim1=1, dim2=3).sum(-1)

    def _refuse_too_much(self, kernels: int) -> None:
        C = self.own.final.shape[1] if self.outputs == "full" else 1
        size = 8 * self.both.n * self.examples.n * C**2
        if kernels and (kernels + 4) * size > self.memory:
            raise InputError(
                f"kernels of {self.both.n:,} by {self.examples.n:,} rows and {C} outputs, {size / 2**30:.3g} GiB each,"
                f" memory={self.memory / 2**30:.3g} GiB",
                expected=f"room for {kernels + 4} of them",
                do='raise memory=, pass outputs="trace", fewer rows, or machines= without kernels ("left_ledger")',
            )


def _of_kernel(kind: str) -> tuple[str, ...]:
    more = ("null", "domingos_constant") if kind == "path" else ()
    return (f"descent_{kind}", f"ridge_{kind}", *more)


def _summed_derivatives(
    run: Run, model: nn.Module, parameters: list[str], space: FunctionSpace, common: dict[str, Any]
) -> Tensor | str:
    """Σ_t h_t (1/B_t) ∂ℓ_i/∂f, (n, C), or why there is none."""
    groups = [group for step in run.steps for group in step.groups]
    names = ("momentum", "weight_decay", "maximize")
    if run.optimizer != "SGD" or any(group.get(name) for group in groups for name in names):
        return PLAIN
    try:
        rates = [step_rate(step) for step in run.steps]
        trained = StepExamples(run, model, parameters=parameters, loss=common["loss"], forward=common["forward"])
    except InputError:
        return PLAIN
    except UnsupportedModelError as error:
        return error.given
    summed = torch.zeros_like(space.initial)
    for t, state in replay(run, model, stop=len(run) - 1, **common):
        own, index = trained.derivatives(run.steps[t], state)
        summed.index_add_(0, index, rates[t] * own)
    return summed


def _wanted(machines: Collection[str] | None) -> tuple[str, ...]:
    if machines is None:
        return tuple(MACHINES)
    unknown = [name for name in machines if name not in MACHINES]
    if unknown or isinstance(machines, str) or not machines:
        raise InputError(
            f"machines={machines!r}",
            expected=f"some of {', '.join(MACHINES)}",
            do='pass machines=["descent_initial", "ridge_path"]',
        )
    return tuple(name for name in MACHINES if name in machines)


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _at(targets: Any, index: Tensor) -> Any:
    if isinstance(targets, Tensor):
        return targets[index]
    return torch.as_tensor(targets)[index]
