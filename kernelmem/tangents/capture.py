"""One forward pass, with every operation that uses a parameter met on the way.

A ``TorchFunctionMode`` sees each torch call of the forward pass. Where a rule knows the operation, the parameters enter
it detached, the rule keeps what it needs (the input activations), and the autograd edge of the output is kept, so that
later sweeps give output gradients and never form a weight gradient. A parameter that still hangs on the graph after the
pass was used in a way that no rule knows: it is reported, and the dense fallback takes it. So functional use of weights,
modules called twice and unknown layers are covered or reported, never lost.

A weight that is computed from parameters (weight norm, a slice, 1 + gain) is met in the same way: the operation's tangent
with respect to the computed weight is pulled back to the parameters afterwards (``ParameterUse.derived``). For that the recorder
tells tensors that come from the data from tensors that come from parameters alone.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.overrides import TorchFunctionMode

from kernelmem.core.batches import Batch
from kernelmem.core.errors import UnsupportedModelError
from kernelmem.tangents.batch_axis import BatchAxis
from kernelmem.tangents.prepare import PreparedModel

__all__ = ["Capture", "Decomposition", "OuterShape", "ParameterUse", "ParsedCall", "Reparse", "Rule", "capture"]


@dataclass
class ParsedCall:
    """How a rule reads one call: which tensors are parameters, and how to run it with others in their place."""

    weights: dict[str, Tensor | None]  # slot -> tensor that may be a parameter (or computed from parameters)
    inputs: dict[str, Tensor]  # name -> activation that the rule needs later
    run: Callable[[dict[str, Tensor | None]], Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    # With S weights (S, ...) in each slot, on S equal blocks of rows that lead all axes; None: no faster way is known.
    run_blocks: Callable[[dict[str, Tensor | None]], Tensor] | None = None


Function: TypeAlias = Callable[..., Any]  # of torch

# Reads the same call once more, its arguments (a tuple, then a dict) changed by a function.
Reparse = Callable[[Callable[[Any], Any]], "ParsedCall | None"]


@dataclass(frozen=True)
class OuterShape:
    """Tangents of a weight as sums of outer products: Σ_s g_s ⊗ a_s for each row, in G independent groups."""

    positions: int  # S
    fan_in: int
    fan_out: int
    groups: int = 1


class Rule:
    """What is known about one kind of operation: ``linear.py`` is the shortest one."""

    functions: tuple[Function, ...]

    def read(self, function: Function, args: tuple, kwargs: dict) -> ParsedCall | None:
        """Read a call; None where it is of a form that the rule does not know."""
        raise AssertionError("every rule reads calls")

    def outer_shape(self, use: "ParameterUse", n: int) -> OuterShape | None:
        """The sizes of the outer products that make up the weight's tangents; None: they have no such form."""
        return None

    def is_direct(self, use: "ParameterUse") -> bool:
        """Whether the tangents are found in full, entry by entry."""
        return False

    def arrange(self, use: "ParameterUse", rows: Tensor) -> Tensor:
        """The output's rows view with its axes in the order in which ``gradients`` wants them."""
        return rows

    def direction_axis(self, use: "ParameterUse") -> int:
        """Where the axis of k directions goes in the arranged rows, so that later products need no copies."""
        return 1

    def activations(self, use: "ParameterUse", n: int, *, ones: bool) -> Tensor:
        """A as (n, G, S, fan_in), with a last column of ones for the bias where asked; outer rules only."""
        raise AssertionError("outer rules have activations")

    def output_gradients(self, use: "ParameterUse", stacked: Tensor) -> Tensor:
        """G as a view (n, G, S, k, fan_out); outer rules only."""
        raise AssertionError("outer rules have gradients")

    def to_weight_shape(self, use: "ParameterUse", tangent: Tensor) -> Tensor:
        """A tangent (n, k, G, out, fan_in) in the shape of the weight; outer rules only."""
        return tangent

    def direct_tangents(self, use: "ParameterUse", stacked: Tensor, n: int) -> dict[str, Tensor]:
        """Tangents in full, slot -> (n, k, ...); direct rules only."""
        raise AssertionError("direct rules have tangents in full")


class Decomposition:
    """An operation that is run as a composition of others, which the rules then meet one by one."""

    functions: tuple[Function, ...]

    def expand(self, function: Function, args: tuple, kwargs: dict) -> object:
        """The same outputs, to rounding; NotImplemented where the call is of another form."""
        raise AssertionError("every rewriting expands calls")


@dataclass
class ParameterUse:
    """One use of parameters by one operation."""

    key: int  # ordinal among the calls that rules read: the same in every pass of the same model
    rule: Rule
    names: dict[str, str]  # slot -> parameter name
    derived: dict[str, Tensor]  # slot -> tensor computed from parameters, with its graph
    weights: dict[str, Tensor | None]  # all slots, as they entered the operation (detached)
    inputs: dict[str, Tensor]
    settings: dict[str, Any]
    edge: GradientEdge  # of the output
    input_edge: GradientEdge | None  # of the activation named "input", where it hangs on the graph
    output_shape: torch.Size
    batch_axis: BatchAxis = field(default_factory=lambda: BatchAxis(0))
    versions: dict[str, int] = field(default_factory=dict)
    sources: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # derived slot -> the parameters behind it

    @property
    def slots(self) -> set[str]:
        """Slots whose tangents are wanted."""
        return {*self.names, *self.derived}

    def activation(self, name: str = "input") -> Tensor:
        """An input of the operation; refused if something wrote over it after the operation."""
        tensor = self.inputs[name]
        if tensor._version != self.versions[name]:
            raise UnsupportedModelError(
                f"a model that writes in place over the input of the layer with {', '.join(self.names.values())}",
                expected="activations that stay as they were when a layer read them",
                hint="replace the in-place operation after that layer's input (inplace=True, +=, relu_) by a plain one",
            )
        return tensor

    def rows_shape(self, n: int) -> torch.Size:
        """Shape of the output's rows view: (n, ...)."""
        return self.batch_axis.rows(torch.empty(self.output_shape, device="meta"), n).shape


@dataclass(frozen=True)
class Capture:
    """Outputs of n rows with their graph, the uses that rules cover, and the parameters that none covers."""

    outputs: Tensor  # (n, C)
    uses: tuple[ParameterUse, ...]
    uncovered: frozenset[str]
    n: int


def capture(
    prepared: PreparedModel,
    batch: Batch,
    n: int,
    rules: Sequence[Rule | Decomposition],
    *,
    skip: frozenset[int] = frozenset(),
    dense: Iterable[str] = (),
    batch_axes: dict[int, BatchAxis] | None = None,
    recorder: "Callable[..., OperationRecorder] | None" = None,
) -> Capture:
    """Run the prepared model on a batch of n rows and record every use of its parameters.

    Calls whose ordinal is in ``skip`` run as they are; parameters in ``dense`` are treated as constants (the dense
    fallback differentiates by them). Cost: one forward pass.
    """
    constants = [prepared.parameters[name] for name in dense]
    try:
        for parameter in constants:
            parameter.requires_grad_(False)
        tracked = {name: p for name, p in prepared.parameters.items() if p.requires_grad}
        seen = (recorder or OperationRecorder)(tracked, rules, skip)
        seen.mark(batch)
        with torch.enable_grad(), seen:
            outputs = prepared.outputs(batch, n)
    finally:
        for parameter in constants:
            parameter.requires_grad_(True)
    seen.data.clear()  # its callbacks hold the recorder, and with it the graph
    known = {id(parameter): name for name, parameter in prepared.parameters.items()}
    known |= {id(leaf): "" for leaf in seen.leaves}
    for use in seen.uses:
        use.batch_axis = (batch_axes or {}).get(use.key, use.batch_axis)
        for slot, tensor in use.derived.items():
            behind = _leaves_behind(tensor, known)
            use.sources[slot] = {name: prepared.parameters[name] for name in sorted(behind)}
    return Capture(outputs, tuple(seen.uses), frozenset(_leaves_behind(outputs, known)), n)


class OperationRecorder(TorchFunctionMode):
    """Sees every torch call of a forward pass; keeps a ``ParameterUse`` for each one that a rule reads."""

    def __init__(
        self, parameters: dict[str, nn.Parameter], rules: Sequence[Rule | Decomposition], skip: frozenset[int]
    ) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in parameters.items()}
        self.rules = {function: rule for rule in rules for function in rule.functions}
        self.skip = skip
        self.uses: list[ParameterUse] = []
        self.calls = 0
        self.data: dict[int, weakref.ref] = {}
        self.leaves: list[Tensor] = []

    def mark(self, tree: object) -> None:
        """Remember that these tensors come from the data."""
        for tensor in tensors_in(tree):
            key = id(tensor)
            self.data[key] = weakref.ref(tensor, lambda _, key=key: self.data.pop(key, None))

    def from_data(self, tree: object) -> bool:
        """Whether any tensor of ``tree`` comes from the data."""
        return any(id(tensor) in self.data for tensor in tensors_in(tree))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        rule = self.rules.get(func) if torch.is_grad_enabled() else None
        if isinstance(rule, Rule):
            output = self._meet(rule, func, args, kwargs)
            if output is not None:
                self.mark(output)
                return output
        elif rule is not None:
            with self:
                output = rule.expand(func, args, kwargs)
            if output is not NotImplemented:
                return output
        if func is Tensor.view and args[0].ndim == 4 and not args[0].is_contiguous():
            args = (args[0].contiguous(), *args[1:])  # the convolution rule may have changed the memory layout
        output = func(*args, **kwargs)
        if self.from_data((args, kwargs)):
            self.mark(output)
        return output

    def run(self, call: ParsedCall, names: dict[str, str], weights: dict[str, Tensor | None], again: Reparse) -> Tensor:
        """Run one operation with detached weights; a subclass may put others in their place, or run it on fewer rows."""
        return call.run(weights)

    def _meet(self, rule: Rule, func: Function, args: tuple, kwargs: dict) -> Tensor | None:
        call = rule.read(func, args, kwargs)
        if call is None:
            return None
        names, derived = {}, {}
        for slot, value in call.weights.items():
            if value is None or not value.requires_grad:
                continue
            if id(value) in self.names:
                names[slot] = self.names[id(value)]
            elif not self.from_data(value):
                derived[slot] = value
            else:
                return None  # a weight that depends on the data: every row has its own
        if not names and not derived:
            return None
        self.calls += 1
        if self.calls in self.skip:
            return None
        found = call.inputs.get("input")
        input_edge = get_gradient_edge(found) if found is not None and found.requires_grad else None
        weights = {slot: None if value is None else value.detach() for slot, value in call.weights.items()}
        output = self.run(call, names, weights, lambda change: rule.read(func, change(args), change(kwargs)))
        if not output.requires_grad:  # nothing before it was tracked: the graph starts here
            leaf = output.detach().requires_grad_()
            self.leaves.append(leaf)
            output = leaf.clone()
        elif output._is_view():  # an in-place operation on a view would rewrite the history that the edge points to
            output = output.clone()
        inputs = {name: tensor.detach() for name, tensor in call.inputs.items()}
        versions = {name: tensor._version for name, tensor in inputs.items()}
        edge = get_gradient_edge(output)
        self.uses.append(
            ParameterUse(
                self.calls,
                rule,
                names,
                derived,
                weights,
                inputs,
                call.settings,
                edge,
                input_edge,
                output.shape,
                versions=versions,
            )
        )
        return output


def required(value: Tensor | None) -> Tensor:
    """A slot that the operation cannot do without."""
    assert value is not None
    return value


def tensors_in(tree: object) -> list[Tensor]:
    """All tensors in nested tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, tuple | list):
        return []
    return [tensor for item in tree for tensor in tensors_in(item)]


def _leaves_behind(tensor: Tensor, known: dict[int, str]) -> set[str]:
    """Names of the parameters that the graph of ``tensor`` reaches; a leaf that is not the model's own is refused."""
    found: list[Tensor] = [tensor] if tensor.grad_fn is None and tensor.requires_grad else []
    seen: set[Node] = set()
    stack = [tensor.grad_fn] if tensor.grad_fn is not None else []
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.append(variable)
        stack.extend(parent for parent, _ in node.next_functions if parent is not None)
    foreign = [tuple(leaf.shape) for leaf in found if id(leaf) not in known]
    if foreign:
        raise UnsupportedModelError(
            f"a forward pass that uses a tensor of shape {foreign[0]} which requires gradients and is no parameter of the model",
            expected="parameters reached through the module that forward= is given (a copy of yours is analyzed)",
            hint="write forward=lambda model, batch: ... with that model, and register free tensors as nn.Parameter",
        )
    return {known[id(leaf)] for leaf in found} - {""}
