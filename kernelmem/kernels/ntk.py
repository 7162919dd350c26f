"""The empirical neural tangent kernel of a network, exactly, by the cheapest contraction of its tangents."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Rows, as_rows
from kernelmem.core.checks import as_labels
from kernelmem.core.errors import InputError
from kernelmem.core.options import as_bytes
from kernelmem.kernels import verification
from kernelmem.tangents.engine.engine import Engine, LabeledRows
from kernelmem.tangents.engine.plan import Plan
from kernelmem.tangents.groups.directions import OUTPUT_KINDS, OutputDirections, named_target
from kernelmem.tangents.prepare import PreparedModel, check_rows, prepare

__all__ = ["as_bytes", "ntk", "ntk_plan"]

Outputs = Literal["trace", "diagonal", "full", "pseudo"]
# For each model what was verified; the callables among it are held, so that their ids stay their own.
_verified: weakref.WeakKeyDictionary[nn.Module, dict[Any, Any]] = weakref.WeakKeyDictionary()


@torch.inference_mode(mode=False)  # callers may sit inside inference mode, where nothing can be differentiated
def ntk(
    model: nn.Module,
    x: Any,
    y: Any = None,
    *,
    outputs: Outputs = "trace",
    target: Any = None,
    labels: Any = None,
    parameters: Iterable[str] | None = None,
    by: Literal["layer"] | None = None,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    memory: int | str = "4GiB",
    progress: Callable[[int, int], None] | None = None,
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

    One forward pass meets every use of every parameter; C backward sweeps give output gradients; each layer is then
    contracted in factored form, e.g. K = (A Aᵀ + 1) ∘ (G Gᵀ) for a Linear layer. The Jacobian is formed only where
    that is cheaper, or for parameters used in a way that no rule knows. All ways are exact. ``print(ntk_plan(...))``
    shows which way each parameter goes.

    Args:
        model: any module whose ``model(x)`` is (n, C); never changed (a copy is analyzed). It must be in eval mode where
            that matters.
        x: n rows: tensor, array, dict or tuple of them, Dataset or DataLoader.
        y: m rows, likewise; None means y = x (symmetric, half the work).
        outputs: which of the kernels above.
        target: a scalar of outputs and labels in place of ``outputs``: "margin" (f_y − max_{k≠y} f_k), "loss"
            (cross-entropy), ("logit", c), or a callable (outputs (n, C), labels) -> (n,). One backward sweep, however
            many outputs; the kernel is (n, m).
        labels: (n,) integers for ``target``, or a pair for (x, y).
        parameters: names of the parameters to differentiate by; None: those with requires_grad.
        by: "layer" returns {module name: kernel}, summands of the whole.
        forward: maps (model, batch) to (n, C) outputs, for models with other inputs or outputs.
        dtype: torch.float32 or torch.float64; None: the model's own.
        device: where to compute; None: where the model is.
        memory: bytes that the call may allocate above what is resident when it starts, as a number or "4GiB".
        progress: called with (parts done, parts in all): tiles, or directions where all rows fit in memory.
        verify: compare a few rows with the dense definition, once for each model and kind of kernel.

    Returns:
        The kernel, in ``dtype`` on ``device``. With y=None it is symmetric to the bit.

    Raises:
        InputError: rows the model does not take, NaN, unknown parameters or kind of outputs, too little memory.
        UnsupportedModelError: train-mode BatchNorm, active dropout, outputs that are not (n, C).
        VerificationError: the contraction differs from the definition (a model that mixes the rows of its batch).

    Cost: nC backward passes + n²(in + C·out) operations a Linear layer for the trace, n²C²·out for the full kernel;
    with S positions a row nC·S·in·out + n²C·in·out; half of the n² terms with y=None.

    Source: Jacot, Gabriel, Hongler 2018; layerwise contraction: Novak, Sohl-Dickstein, Schoenholz 2022.

    >>> model = nn.Linear(2, 3)
    >>> ntk(model, torch.tensor([[1.0, 0.0], [0.0, 2.0]]))  # linear model: C (x·x' + 1)
    tensor([[ 6.,  3.],
            [ 3., 15.]])
    """
    if by not in (None, "layer"):
        raise InputError(f"by={by!r}", expected='None or "layer"', hint='pass by="layer" for one kernel a layer')
    names = None if parameters is None else list(parameters)
    task = _Task(model, x, y, outputs, target, labels, names, forward, dtype, device)
    plan = task.plan(memory)
    if verify:
        task.verify(plan)
    found = task.engine.kernel(task.left, task.right, plan, by_layer=by is not None, progress=progress)
    return found if by is not None else found[""]


@torch.inference_mode(mode=False)
def ntk_plan(
    model: nn.Module,
    x: Any,
    y: Any = None,
    *,
    outputs: Outputs = "trace",
    target: Any = None,
    labels: Any = None,
    parameters: Iterable[str] | None = None,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    memory: int | str = "4GiB",
) -> Plan:
    """Say what :func:`ntk` would do with the same arguments: a frozen plan that prints as a table.

    Only probes of two and three rows are run. The plan counts, for each group of parameters, the operations of the way
    that was chosen and of the other one, and gives the tile sizes that fit ``memory``.

    >>> print(ntk_plan(nn.Linear(2, 3), torch.zeros(100, 2)))  # doctest: +ELLIPSIS
    kernel (trace) of 100 x 100 rows, symmetric, 3 outputs, 9 parameters, float32
    parameters    way                   GFLOP   kept a row  otherwise
    weight, bias  readout                0.00            3
    contraction 0.00 GFLOP; tiles of 100 rows, ...
    """
    names = None if parameters is None else list(parameters)
    return _Task(model, x, y, outputs, target, labels, names, forward, dtype, device).plan(memory)


class _Task:
    """The arguments of a call, read and checked."""

    def __init__(
        self,
        model: nn.Module,
        x: Any,
        y: Any,
        outputs: str,
        target: Any,
        labels: Any,
        parameters: list[str] | None,
        forward: Any,
        dtype: torch.dtype | None,
        device: Any,
    ) -> None:
        if outputs not in OUTPUT_KINDS:
            raise InputError(
                f"outputs={outputs!r}",
                expected='"trace", "diagonal", "full" or "pseudo"',
                hint='use "trace" for one kernel value a pair of rows',
            )
        left, right = as_rows(x, "x"), None if y is None else as_rows(y, "y")
        self.model = model
        self.prepared = prepare(model, left, forward=forward, parameters=parameters, dtype=dtype, device=device)
        if right is not None:
            check_rows(self.prepared, right)
        mine, theirs = _labels(labels, left, right, self.prepared)
        self.left = LabeledRows(left.to(dtype=self.prepared.dtype, device=self.prepared.device), mine)
        self.right = None
        if right is not None:
            self.right = LabeledRows(right.to(dtype=self.prepared.dtype, device=self.prepared.device), theirs)
        C = self.prepared.n_outputs
        directions = (
            OutputDirections(outputs, C) if target is None else OutputDirections("target", C, named_target(target))
        )
        self.engine = Engine.build(self.prepared, self.left.rows, directions)
        self.callables = target, forward
        named = (outputs, self.prepared.dtype, tuple(self.prepared.parameters))
        self.key = (*named, id(target) if callable(target) else target, id(forward))

    def plan(self, memory: int | str) -> Plan:
        m = (self.right or self.left).rows.n
        return self.engine.plan(self.left.rows.n, m, symmetric=self.right is None, memory=as_bytes(memory))

    def verify(self, plan: Plan) -> None:
        """Hold a few rows against the definition, once for each model and kind of kernel."""
        done, key = _verified.setdefault(self.model, {}), (self.key, plan.groups, plan.streamed)
        if key not in done:
            verification.verify(self.engine, self.left, self.right, plan)
            done[key] = self.callables


def _labels(
    labels: Any, left: Rows, right: Rows | None, prepared: PreparedModel
) -> tuple[Tensor | None, Tensor | None]:
    if labels is None:
        return None, None
    pair = labels if isinstance(labels, tuple) and len(labels) == 2 else (labels, None)
    if right is not None and pair[1] is None:
        raise InputError("labels for x alone", expected="a pair (labels of x, labels of y)", hint="pass labels=(a, b)")
    found = []
    for name, value, rows in zip(("labels of x", "labels of y"), pair, (left, right), strict=True):
        if value is None or rows is None:
            found.append(None)
            continue
        found.append(as_labels(value, name, n=rows.n, n_classes=prepared.n_outputs).to(prepared.device))
    return found[0], found[1]
