"""Recording of one forward pass: every operation that uses a parameter.

A ``TorchFunctionMode`` intercepts each torch call of the forward pass. If a rule covers the operation, the parameters
enter it detached, the rule keeps what it needs (the input activations), and the autograd edge of the output is kept, so
that later sweeps give output gradients and never form a weight gradient. A parameter that is still on the graph after
the pass was used in a way that no rule covers: it is reported, and the dense fallback differentiates it. Functional use
of weights, modules called twice and unknown layers are thus covered or reported, never lost.

A weight that is computed from parameters (weight norm, a slice, 1 + gain) is recorded in the same way; the tangent with
respect to the computed weight is pulled back to the parameters afterwards (``ParameterUse.derived``). For this the
recorder distinguishes tensors that depend on the data from tensors that depend on parameters alone.
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


@dataclass
class ParsedCall:
    """Torch call parsed by a rule: the tensors that may be parameters, and how to run it with other values for them."""

    weights: dict[str, Tensor | None]  # slot -> tensor that may be a parameter (or computed from parameters)
    inputs: dict[str, Tensor]  # name -> activation that the rule needs later
    run: Callable[[dict[str, Tensor | None]], Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    # Runs with S weights (S, ...) per slot, on S equal blocks of the first axis; None: no faster implementation is known.
    run_blocks: Callable[[dict[str, Tensor | None]], Tensor] | None = None
    # The rest of the call, a function from the recorded output to the output of the call; None: nothing remains.
    then: Callable[[Tensor], Tensor] | None = None

    def again(self, rule: "Rule", function: "Function", args: tuple, kwargs: dict) -> "ParsedCall | None":
        """Parse the call again with other arguments and the same weights."""
        weights = {id(value) for value in self.weights.values() if value is not None}
        return rule.read(function, args, kwargs, lambda tensor: not weights.isdisjoint({id(tensor), id(tensor._base)}))


Function: TypeAlias = Callable[..., Any]  # a torch function
IsWeight: TypeAlias = Callable[
    [Tensor], bool
]  # True for a parameter, a view of it, or a tensor computed from parameters

# Parses the same call again after a function was applied to its arguments (a tuple, then a dict).
Reparse = Callable[[Callable[[Any], Any]], "ParsedCall | None"]


@dataclass(frozen=True)
class OuterShape:
    """Sizes of tangents that are sums of outer products Σ_s g_s ⊗ a_s over S positions s of an example, in G channel groups.

    g_s are output gradients (fan_out) and a_s activations (fan_in).
    """

    positions: int  # S
    fan_in: int
    fan_out: int
    groups: int = 1


class Rule:
    """Base class of rules: one kind of operation, and the tangents of its parameters. ``linear`` is a short example."""

    functions: tuple[Function, ...]

    def read(self, function: Function, args: tuple, kwargs: dict, is_weight: IsWeight) -> ParsedCall | None:
        """Parse a call of a torch function; return None if the rule does not cover this form of the call.

        ``is_weight`` tells which operands of the call depend on parameters and not on the data.
        """
        raise AssertionError("every rule implements read")

    def outer_shape(self, use: "ParameterUse", n: int) -> OuterShape | None:
        """Return the sizes of the outer products whose sum is the tangent of the weight; None if it has another form."""
        return None

    def is_direct(self, use: "ParameterUse") -> bool:
        """Return True if the rule computes the tangents of this use by :meth:`direct_tangents`, not as outer products."""
        return False

    def arrange(self, use: "ParameterUse", rows: Tensor) -> Tensor:
        """Permute the axes of ``rows``, an output gradient with examples first, to the order of ``output_gradients``."""
        return rows

    def direction_axis(self, use: "ParameterUse") -> int:
        """Return where to insert the axis of k output directions into the result of :meth:`arrange`.

        The position is chosen so that later matrix products need no copy.
        """
        return 1

    def activations(self, use: "ParameterUse", n: int, *, ones: bool) -> Tensor:
        """Return the activations (n examples, G groups, S positions, fan_in) of a use with outer-product tangents.

        ``ones`` appends a column of ones to the last axis, for the bias.
        """
        raise AssertionError("rules with outer products implement activations")

    def output_gradients(self, use: "ParameterUse", gradient: Tensor) -> Tensor:
        """Return the output gradients of a use with outer-product tangents as a view (n, G, S, k, fan_out).

        n counts examples, G channel groups, S positions and k output directions.
        """
        raise AssertionError("rules with outer products implement output_gradients")

    def to_weight_shape(self, use: "ParameterUse", tangent: Tensor) -> Tensor:
        """Reshape an outer-product tangent (n, k, G, out, fan_in) to (n, k, *weight shape).

        n counts examples, k output directions and G channel groups.
        """
        return tangent

    def direct_tangents(self, use: "ParameterUse", gradient: Tensor, n: int) -> dict[str, Tensor]:
        """Return a dict from slot to tangents (n examples, k directions, *parameter shape); requires :meth:`is_direct`."""
        raise AssertionError("direct rules implement direct_tangents")


class Decomposition:
    """Base class of operations that are run as a composition of others, which the rules cover one by one."""

    functions: tuple[Function, ...]

    def expand(self, function: Function, args: tuple, kwargs: dict) -> object:
        """Return the outputs of ``function(*args, **kwargs)`` up to rounding; NotImplemented if this form is not covered."""
        raise AssertionError("every decomposition implements expand")


@dataclass
class ParameterUse:
    """One use of parameters by one operation of the forward pass."""

    key: int  # ordinal among the calls that rules cover: the same in every pass of the same model
    rule: Rule
    names: dict[str, str]  # slot -> parameter name
    derived: dict[str, Tensor]  # slot -> tensor computed from parameters, with its graph
    weights: dict[str, Tensor | None]  # all slots, as passed to the operation (detached)
    inputs: dict[str, Tensor]
    settings: dict[str, Any]
    edge: GradientEdge  # autograd edge of the output
    input_edge: GradientEdge | None  # autograd edge of the activation "input", if it is on the graph
    output_shape: torch.Size
    batch_axis: BatchAxis = field(default_factory=lambda: BatchAxis(0))
    versions: dict[str, int] = field(default_factory=dict)
    sources: dict[str, dict[str, Tensor]] = field(
        default_factory=dict
    )  # derived slot -> the parameters it is computed from

    @property
    def slots(self) -> set[str]:
        """Slots (such as "weight" and "bias") that hold a parameter, or a tensor computed from parameters."""
        return {*self.names, *self.derived}

    def activation(self, name: str = "input") -> Tensor:
        """Return an input of the operation, unless it was modified in place after the operation.

        Raises:
            UnsupportedModelError: the activation was modified in place.
        """
        tensor = self.inputs[name]
        if tensor._version != self.versions[name]:
            raise UnsupportedModelError(
                f"a model that modifies in place the input of the layer with {', '.join(self.names.values())}",
                expected="activations that do not change after a layer has read them",
                hint="replace the in-place operation (inplace=True, +=, relu_) by one that returns a new tensor",
            )
        return tensor

    def rows_shape(self, n: int) -> torch.Size:
        """Return the shape of the operation's output after its axis of n examples is moved to the front."""
        return self.batch_axis.rows(torch.empty(self.output_shape, device="meta"), n).shape


@dataclass(frozen=True)
class Capture:
    """Recorded forward pass of n examples: outputs with their graph, recorded uses, and parameters that no rule covers."""

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

    Calls whose ordinal is in ``skip`` are not intercepted; parameters in ``dense`` are treated as constants (the dense
    fallback differentiates them). Cost: one forward pass.
    """
    dense_parameters = [prepared.parameters[name] for name in dense]
    try:
        for parameter in dense_parameters:
            parameter.requires_grad_(False)
        tracked_parameters = {name: p for name, p in prepared.parameters.items() if p.requires_grad}
        operation_recorder = (recorder or OperationRecorder)(tracked_parameters, rules, skip)
        operation_recorder.mark_as_data(batch)
        with torch.enable_grad(), operation_recorder:
            outputs = prepared.outputs(batch, n)
    finally:
        for parameter in dense_parameters:
            parameter.requires_grad_(True)
    operation_recorder.data_tensors.clear()  # callbacks of the weak references keep the recorder and the graph alive
    name_of_id = {id(parameter): name for name, parameter in prepared.parameters.items()}
    name_of_id |= {id(leaf): "" for leaf in operation_recorder.graph_leaves}
    for use in operation_recorder.uses:
        use.batch_axis = (batch_axes or {}).get(use.key, use.batch_axis)
        for slot, tensor in use.derived.items():
            use.sources[slot] = {name: prepared.parameters[name] for name in sorted(_source_names(tensor, name_of_id))}
    return Capture(outputs, tuple(operation_recorder.uses), frozenset(_source_names(outputs, name_of_id)), n)


class OperationRecorder(TorchFunctionMode):
    """Intercepts every torch call of a forward pass and keeps a ``ParameterUse`` for each call that a rule covers."""

    def __init__(
        self, parameters: dict[str, nn.Parameter], rules: Sequence[Rule | Decomposition], skip: frozenset[int]
    ) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in parameters.items()}
        self.rules = {function: rule for rule in rules for function in rule.functions}
        self.skip = skip
        self.uses: list[ParameterUse] = []
        self.calls = 0
        self.data_tensors: dict[int, weakref.ref] = {}
        self.graph_leaves: list[Tensor] = []

    def mark_as_data(self, tree: object) -> None:
        """Record that the tensors in ``tree`` depend on the data."""
        for tensor in tensors_in(tree):
            key = id(tensor)
            self.data_tensors[key] = weakref.ref(tensor, lambda _, key=key: self.data_tensors.pop(key, None))

    def depends_on_data(self, tree: object) -> bool:
        """Return True if any tensor in ``tree`` depends on the data."""
        return any(id(tensor) in self.data_tensors for tensor in tensors_in(tree))

    def is_weight(self, tensor: Tensor) -> bool:
        """Return True if ``tensor`` depends on parameters and not on the data."""
        return tensor.requires_grad and not self.depends_on_data(tensor)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Run a torch call of the forward pass, recorded or decomposed if a rule covers it, and return its output."""
        kwargs = kwargs or {}
        rule = self.rules.get(func) if torch.is_grad_enabled() else None
        if isinstance(rule, Rule):
            output = self._record(rule, func, args, kwargs)
            if output is not None:
                self.mark_as_data(output)
                return output
        elif rule is not None:
            with self:
                output = rule.expand(func, args, kwargs)
            if output is not NotImplemented:
                return output
        if func is Tensor.view and args[0].ndim == 4 and not args[0].is_contiguous():
            args = (args[0].contiguous(), *args[1:])  # the convolution rule may have changed the memory layout
        output = func(*args, **kwargs)
        if self.depends_on_data((args, kwargs)):
            self.mark_as_data(output)
        return output

    def run(self, call: ParsedCall, names: dict[str, str], weights: dict[str, Tensor | None], again: Reparse) -> Tensor:
        """Run one parsed operation with the detached ``weights`` and return its output.

        Subclasses substitute other weights, or run it on some of the examples (``again`` parses it with other arguments).
        """
        return call.run(weights)

    def _record(self, rule: Rule, func: Function, args: tuple, kwargs: dict) -> Tensor | None:
        """Run a call and record its use of parameters; return the output, or None without running it if it uses none."""
        call = rule.read(func, args, kwargs, self.is_weight)
        if call is None:
            return None
        names, derived = {}, {}
        for slot, value in call.weights.items():
            if value is None or not value.requires_grad:
                continue
            if id(value) in self.names:
                names[slot] = self.names[id(value)]
            elif not self.depends_on_data(value):
                derived[slot] = value
            else:
                return None  # the weight depends on the data and differs between rows
        if not names and not derived:
            return None
        self.calls += 1
        if self.calls in self.skip:
            return None
        activation = call.inputs.get("input")
        input_edge = get_gradient_edge(activation) if activation is not None and activation.requires_grad else None
        weights = {slot: None if value is None else value.detach() for slot, value in call.weights.items()}
        output = self.run(call, names, weights, lambda change: call.again(rule, func, change(args), change(kwargs)))
        if not output.requires_grad:  # no earlier operation is tracked: the graph starts here
            leaf = output.detach().requires_grad_()
            self.graph_leaves.append(leaf)
            output = leaf.clone()
        elif output._is_view():  # an in-place operation on a view would rewrite the graph that the edge points to
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
        if call.then is None:
            return output
        self.mark_as_data(output)
        with self:
            return call.then(output)


def required(value: Tensor | None) -> Tensor:
    """Return ``value``, the tensor of a slot that is never empty, with the type Tensor."""
    assert value is not None
    return value


def tensors_in(tree: object) -> list[Tensor]:
    """Return all tensors in nested tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, tuple | list):
        return []
    return [tensor for item in tree for tensor in tensors_in(item)]


def _source_names(tensor: Tensor, name_of_id: dict[int, str]) -> set[str]:
    """Return the names of the parameters on the graph of ``tensor``.

    Raises:
        UnsupportedModelError: a leaf of the graph does not belong to the model.
    """
    graph_leaves: list[Tensor] = [tensor] if tensor.grad_fn is None and tensor.requires_grad else []
    visited: set[Node] = set()
    stack = [tensor.grad_fn] if tensor.grad_fn is not None else []
    while stack:
        node = stack.pop()
        if node in visited:
            continue
        visited.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            graph_leaves.append(variable)
        stack.extend(parent for parent, _ in node.next_functions if parent is not None)
    foreign_shapes = [tuple(leaf.shape) for leaf in graph_leaves if id(leaf) not in name_of_id]
    if foreign_shapes:
        raise UnsupportedModelError(
            f"a forward pass that uses a tensor of shape {foreign_shapes[0]} that requires gradients and is not a"
            " parameter of the model",
            expected="parameters of the module that forward= receives (a copy of your module is analyzed)",
            hint="use the model argument in forward=lambda model, batch: ..., and register free tensors as nn.Parameter",
        )
    return {name_of_id[id(leaf)] for leaf in graph_leaves} - {""}
