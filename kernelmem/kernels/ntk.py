"""Empirical neural tangent kernel of a network, computed exactly by the cheapest contraction of its tangents."""

import weakref
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from kernelmem.core.batches import Batch, Forward, Rows, as_rows
from kernelmem.core.checks import ArrayLike, as_flag, as_labels, as_names, check_choice, check_result
from kernelmem.core.errors import InputError
from kernelmem.core.memory import check_available_memory
from kernelmem.core.models.torch_func import standard_modes
from kernelmem.core.options import MEMORY, Progress, as_bytes, as_progress
from kernelmem.kernels import verification
from kernelmem.tangents.engine.engine import Engine, LabeledRows
from kernelmem.tangents.engine.plan import Plan
from kernelmem.tangents.groups.directions import OUTPUT_KINDS, OutputDirections, TargetLike, named_target
from kernelmem.tangents.prepare import PreparedModel, check_rows, prepare

Outputs = Literal["trace", "diagonal", "full", "pseudo"]
Labels = ArrayLike | tuple[ArrayLike, ArrayLike] | None  # labels of x, or a pair of those of x and y

_OVERFLOW_HINT = "check these rows and the weights (a diverged run?), or pass dtype=torch.float64 if numbers overflow"

# Kinds of kernel that were verified, per model. The callables are kept alive so that their ids are not reused.
_verified_kinds: weakref.WeakKeyDictionary[nn.Module, dict[object, object]] = weakref.WeakKeyDictionary()


@standard_modes()
def ntk(
    model: nn.Module,
    x: Batch,
    y: Batch | None = None,
    *,
    outputs: Outputs = "trace",
    target: TargetLike | None = None,
    labels: Labels = None,
    parameters: Iterable[str] | None = None,
    by: Literal["layer"] | None = None,
    forward: Forward | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    memory: int | str = MEMORY,
    progress: Progress = None,
    verify: bool = True,
) -> Any:
    r"""Compute the empirical neural tangent kernel K(x, y) = J(x) J(y)ᵀ with J = ∂f/∂θ.

    ========== ============================== ============
    outputs    value                          shape
    ========== ============================== ============
    "trace"    Σ_c K^{cc} (a sum, no mean)    (n, m)
    "diagonal" K^{cc}                         (n, m, C)
    "full"     K^{cc'}                        (n, m, C, C)
    "pseudo"   kernel of Σ_c f_c / √C         (n, m)
    ========== ============================== ============

    One forward pass records every use of every parameter, C backward sweeps give the output gradients, and each layer
    is contracted in factored form, e.g. K = (A Aᵀ + 1) ∘ (G Gᵀ) for a Linear layer. The Jacobian is formed only where
    that is cheaper, or for parameters whose use no rule covers. All methods are exact. ``print(ntk_plan(...))`` shows
    the method chosen for each parameter.

    Args:
        model: any module whose ``model(x)`` is (n, C); never changed (a copy is analyzed). It must be in eval mode if
            that changes its outputs.
        x: n rows: tensor, array, dict or tuple of them, Dataset or DataLoader.
        y: m rows, in the same forms; None means y = x (symmetric, half the work).
        outputs: kind of kernel, from the table above.
        target: the kernel of a scalar function of outputs and labels, instead of ``outputs``: "margin"
            (f_y − max_{k≠y} f_k), "loss" (cross-entropy), ("logit", c), or a callable (outputs (n, C), labels) -> (n,).
            One backward sweep for any number of outputs; the kernel is (n, m). For "margin" and "loss" one output z of
            a binary classifier counts as f = [0, z].
        labels: integer labels (n,) that ``target`` needs, or a pair of them for x and y.
        parameters: names of the parameters to differentiate with respect to; None: those with requires_grad.
        by: "layer" returns a dict {module name: kernel}, whose kernels sum to the total; None returns the total.
        forward: maps (model, batch) to (n, C) outputs, for models with other inputs or outputs.
        dtype: torch.float32 or torch.float64; None: the model's own.
        device: where to compute; None: where the model is.
        memory: bytes that the call may allocate in addition to what is resident when it starts, a number or "4GiB".
        progress: called with (done, total) tiles, or directions if all rows fit in memory; True for a bar, False for none.
        verify: compare the tangents of each pass with autograd, its outputs with those of smaller batches, and the kernel of
            a few rows with their Jacobian (once per model and kind of kernel). False is for benchmarks.

    Returns:
        The kernel, in ``dtype`` on ``device``. With y=None it is symmetric to the bit.

    Raises:
        InputError: rows that the model does not accept, NaN, unknown parameters or outputs, too little memory.
        UnsupportedModelError: train-mode BatchNorm, active dropout, outputs that are not (n, C).
        NumericalError: a kernel with NaN or infinite values; the message names the rows.
        VerificationError: a model that mixes the examples of a batch, or a contraction that differs from the Jacobian.

    Cost: nC backward passes + n²(in + C·out) operations per Linear layer for the trace, n²C²·out for the full kernel;
    with S positions per row nC·S·in·out + n²C·in·out; half of the n² terms with y=None.

    Source: Jacot, Gabriel, Hongler 2018; layerwise contraction: Novak, Sohl-Dickstein, Schoenholz 2022.

    >>> model = nn.Linear(2, 3)
    >>> ntk(model, torch.tensor([[1.0, 0.0], [0.0, 2.0]]))  # linear model: C (x·x' + 1)
    tensor([[ 6.,  3.],
            [ 3., 15.]])
    """
    check_choice(by, "by", (None, "layer"), hint='pass by="layer" for one kernel per layer')
    verify, names = as_flag(verify, "verify"), as_names(parameters, "parameters")
    report_progress = as_progress(progress, "NTK", "part")
    computation = Computation(model, x, y, outputs, target, labels, names, forward, dtype, device)
    plan = computation.plan(memory)
    check_available_memory(
        plan.expected_bytes,
        f"a kernel of {plan.n:,} x {plan.m:,} rows",
        "pass less memory=, if the kernel itself is not too large; km.ntk_store, which writes it to a file tile by tile; or"
        " km.ntk_operator, which never forms it",
    )
    if verify:
        computation.verify(plan)
    engine = replace(computation.engine, certified=verify)
    kernels = engine.kernel(
        computation.left, computation.right, plan, by_layer=by is not None, progress=report_progress
    )
    for kernel in kernels.values():
        check_result(kernel, "a kernel", hint=_OVERFLOW_HINT)
    return kernels if by is not None else kernels[""]


@standard_modes()
def ntk_plan(
    model: nn.Module,
    x: Batch,
    y: Batch | None = None,
    *,
    outputs: Outputs = "trace",
    target: TargetLike | None = None,
    labels: Labels = None,
    parameters: Iterable[str] | None = None,
    forward: Forward | None = None,
    dtype: torch.dtype | None = None,
    memory: int | str = MEMORY,
) -> Plan:
    """Return the plan that :func:`ntk` follows for the same arguments: a frozen result that prints as a table.

    Only probes of two and three rows are run, on the device of the model. For each group of parameters the plan counts
    the operations of the chosen method and of its alternative, and it gives the tile sizes that fit ``memory``.

    >>> print(ntk_plan(nn.Linear(2, 3), torch.zeros(100, 2)))  # doctest: +ELLIPSIS
    kernel (trace) of 100 x 100 rows, symmetric, 3 outputs, 9 parameters, float32
    parameters    method                GFLOP  numbers/row  alternative
    weight, bias  readout                0.00            3
    contraction 0.00 GFLOP; tiles of 100 rows, ...
    """
    names = as_names(parameters, "parameters")
    return Computation(model, x, y, outputs, target, labels, names, forward, dtype).plan(memory)


class Computation:
    """Checked arguments of one kernel computation, and the engine that carries it out."""

    def __init__(
        self,
        model: nn.Module,
        x: Batch,
        y: Batch | None,
        outputs: str,
        target: TargetLike | None,
        labels: Labels,
        parameters: list[str] | None,
        forward: Forward | None,
        dtype: torch.dtype | None,
        device: torch.device | str | None = None,
    ) -> None:
        left, right = as_rows(x, "x"), None if y is None else as_rows(y, "y")
        self.model = model
        self.prepared = prepare(model, left, forward=forward, parameters=parameters, dtype=dtype, device=device)
        if right is not None:
            check_rows(self.prepared, right)
        self.left, self.right = labeled_rows(self.prepared, left, right, labels)
        directions = output_directions(outputs, target, self.prepared.n_outputs)
        self.engine = Engine.build(self.prepared, self.left.rows, directions)
        self.keyed_callables = target, forward
        kernel_kind = (outputs, self.prepared.dtype, tuple(self.prepared.parameters))
        self.kind_key = (*kernel_kind, id(target) if callable(target) else target, id(forward))

    def plan(self, memory: int | str) -> Plan:
        """Return the plan of the computation for ``memory``, a number of bytes or a text such as "4GiB"."""
        m = (self.right or self.left).rows.n
        plan = self.engine.plan(self.left.rows.n, m, symmetric=self.right is None, memory=as_bytes(memory))
        return replace(plan, expected_bytes=max(plan.expected_bytes, verification.needed_bytes(self.engine, plan)))

    def verify(self, plan: Plan) -> None:
        """Compare the kernel of a few examples with its definition, once per model and kind of kernel."""
        verified, key = _verified_kinds.setdefault(self.model, {}), (self.kind_key, plan.groups, plan.streamed)
        if key not in verified:
            verification.verify(self.engine, self.left, self.right, plan)
            verified[key] = self.keyed_callables


def output_directions(outputs: str, target: TargetLike | None, n_outputs: int) -> OutputDirections:
    """Read ``outputs=`` and ``target=`` of a model with ``n_outputs`` outputs.

    Raises:
        InputError: an unknown kind of outputs, or an unknown target.
    """
    check_choice(outputs, "outputs", OUTPUT_KINDS, hint='pass outputs="trace" for one kernel value per pair of rows')
    if target is None:
        return OutputDirections(outputs, n_outputs)
    return OutputDirections("target", n_outputs, named_target(target))


def labeled_rows(
    prepared: PreparedModel, x: Rows, y: Rows | None, labels: Labels
) -> tuple[LabeledRows, LabeledRows | None]:
    """Move the rows of both sides to the model's dtype and device, with ``labels=``: those of x, or a pair for (x, y).

    Raises:
        InputError: labels of x without labels of y, or labels that do not fit the rows or the outputs.
    """
    x_labels, y_labels = labels if isinstance(labels, tuple) and len(labels) == 2 else (labels, None)
    if y is not None and x_labels is not None and y_labels is None:
        raise InputError(
            "labels for x and none for y", expected="a pair (labels of x, labels of y)", hint="pass labels=(a, b)"
        )

    def with_labels(rows: Rows, side_labels: ArrayLike | None, name: str) -> LabeledRows:
        """Return the rows of one side with their labels, moved to the dtype and device of the model."""
        valid_labels = None
        if side_labels is not None:
            valid_labels = as_labels(side_labels, name, n=rows.n, n_classes=max(2, prepared.n_outputs)).to(
                prepared.device
            )
        return LabeledRows(rows.to(dtype=prepared.dtype, device=prepared.device), valid_labels)

    return with_labels(x, x_labels, "labels of x"), None if y is None else with_labels(y, y_labels, "labels of y")
