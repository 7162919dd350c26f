"""Recording of one forward pass: every operation that uses a parameter.

A ``TorchFunctionMode`` intercepts each torch call of the forward pass. If a rule covers the operation, the parameters
enter it as aliases, the rule keeps what it needs (the input activations), and the autograd edge of the output is kept, so
that later sweeps give output gradients and never form a weight gradient. A parameter that is on the graph in another
way than by such an alias was used in a way that no rule covers: it is reported, and the dense fallback differentiates
it. Functional use of weights, modules called twice and unknown layers are thus covered or reported, never lost. Since
all parameters stay on the graph, autograd's gradient with respect to them certifies the pass
(:mod:`kernelmem.tangents.survey.certificate`).

A weight that is computed from parameters (weight norm, a slice, 1 + gain) is recorded in the same way; the tangent with
respect to the computed weight is pulled back to the parameters afterwards (``ParameterUse.derived``). For this the
recorder distinguishes tensors that depend on the data from tensors that depend on parameters alone.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import Node, get_gradient_edge
from torch.overrides import TorchFunctionMode, resolve_name

from kernelmem.core.batches import Batch
from kernelmem.core.errors import UnsupportedModelError
from kernelmem.core.models.torch_func import is_transformed
from kernelmem.tangents.batch_axis import BatchAxis
from kernelmem.tangents.capture.rule import (
    Decomposition,
    Function,
    ParameterUse,
    ParsedCall,
    Reparse,
    Rule,
    UseKey,
    required,
)
from kernelmem.tangents.capture.tensors import tensors_in
from kernelmem.tangents.prepare import PreparedModel, graph_leaves


@dataclass(frozen=True)
class Capture:
    """Recorded forward pass of n examples: outputs with their graph, recorded uses, and parameters that no rule covers."""

    outputs: Tensor  # (n, C)
    uses: tuple[ParameterUse, ...]
    uncovered: frozenset[str]
    n: int
    obstacles: Mapping[str, str] = field(default_factory=dict)  # uncovered parameter -> the call that no rule covers
    precision: torch.dtype = torch.float64  # float32 if the model, or a part of it, computes in float32


def capture(
    prepared: PreparedModel,
    batch: Batch,
    n: int,
    rules: Sequence[Rule | Decomposition],
    *,
    skip: frozenset[UseKey] = frozenset(),
    dense: Iterable[str] = (),
    batch_axes: Mapping[UseKey, BatchAxis] | None = None,
    recorder: "Callable[..., OperationRecorder] | None" = None,
) -> Capture:
    """Run the prepared model on a batch of n rows and record every use of its parameters.

    Calls in ``skip`` are not intercepted, nor are uses of the parameters ``dense``, which stay on the graph of the outputs
    as they are. Uses whose axis in ``batch_axes`` fits the shape of their output are marked as located. Cost: one forward
    pass.
    """
    dense = frozenset(dense)
    operation_recorder = (recorder or OperationRecorder)(prepared.parameters, rules, skip, dense)
    operation_recorder.mark_as_data(batch)
    with torch.enable_grad(), operation_recorder:
        outputs = prepared.outputs(batch, n)
    operation_recorder.data_tensors.clear()  # callbacks of the weak references keep the recorder and the graph alive
    for use in operation_recorder.uses:
        batch_axis = (batch_axes or {}).get(use.key)
        if batch_axis is not None and batch_axis.fits(use.output_shape, n):
            use.batch_axis, use.located = batch_axis, True
    uncovered = frozenset(operation_recorder.source_names(outputs)) - dense
    precision = torch.float32 if torch.float32 in (prepared.precision, prepared.dtype) else torch.float64
    return Capture(outputs, tuple(operation_recorder.uses), uncovered, n, operation_recorder.obstacles, precision)


class OperationRecorder(TorchFunctionMode):
    """Intercepts every torch call of a forward pass and keeps a ``ParameterUse`` for each call that a rule covers."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        rules: Sequence[Rule | Decomposition],
        skip: frozenset[UseKey],
        dense: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.parameters = parameters
        self.names = {id(parameter): name for name, parameter in parameters.items() if name not in dense}
        self.rules = {function: rule for rule in rules for function in rule.functions}
        self.skip = skip
        self.dense = dense
        self.uses: list[ParameterUse] = []
        self.calls: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
        self.data_tensors: dict[int, weakref.ref] = {}
        self.aliases: set[Node] = set()  # where parameters enter recorded operations
        self.known_leaves = {id(parameter): name for name, parameter in parameters.items()}
        self.obstacles: dict[str, str] = {}  # parameter that a call without a rule leaves on the graph -> that call
        self.kept_leaves: list[Tensor] = []  # leaves other than parameters, kept alive so that their ids stay theirs

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
            self._keep_data_leaves(args)
            self._note_obstacle(func, (args, kwargs), output)
        return output

    def run(
        self, key: UseKey, call: ParsedCall, names: dict[str, str], weights: dict[str, Tensor | None], again: Reparse
    ) -> Tensor:
        """Run one parsed operation with ``weights`` and return its output.

        Subclasses substitute other weights, or run it on some of the examples (``again`` parses it with other arguments).
        """
        return call.run(weights)

    def identify(
        self, rule: Rule, names: Mapping[str, str], sources: Mapping[str, Iterable[str]] | None = None
    ) -> UseKey:
        """Return the key of the next use of these parameters; ``sources`` names those of computed weights."""
        slots = [
            *names.items(),
            *((slot, f"computed from {', '.join(origins)}") for slot, origins in (sources or {}).items()),
        ]
        kind = type(rule).__name__, tuple(sorted(slots))
        self.calls[kind] += 1
        return UseKey(*kind, self.calls[kind])

    def _record(self, rule: Rule, func: Function, args: tuple, kwargs: dict) -> Tensor | None:
        """Run a call and record its use of parameters; return the output, or None without running it if it uses none."""
        call = rule.read(func, args, kwargs, self.is_weight)
        if call is None or not _is_ordinary(call):
            return None
        names, derived, sources = {}, {}, {}
        for slot, value in call.weights.items():
            if value is None or not value.requires_grad:
                continue
            if id(value) in self.names:
                names[slot] = self.names[id(value)]
                continue
            if self.depends_on_data(value):
                return None  # the weight depends on the data and differs between rows
            origins = sorted(self.source_names(value))
            if not self.dense.isdisjoint(origins):
                return None
            derived[slot], sources[slot] = value, {name: self.parameters[name] for name in origins}
        if not names and not derived:
            return None
        key = self.identify(rule, names, sources)
        if key in self.skip:
            return None
        has_data = self.depends_on_data((args, kwargs))
        activation = call.inputs.get("input")
        input_edge = get_gradient_edge(activation) if activation is not None and activation.requires_grad else None
        weights = {
            slot: value if slot not in {*names, *derived} else self._alias(value)
            for slot, value in call.weights.items()
        }
        output = self.run(
            key, call, names, weights, lambda change: call.again(rule, func, change(args), change(kwargs))
        )
        if not output.requires_grad:  # the weights were substituted by others, and the graph starts here
            leaf = output.detach().requires_grad_()
            self._keep_leaf(leaf)
            output = leaf.clone()
        elif output._is_view():  # an in-place operation on a view would rewrite the graph that the edge points to
            output = output.clone()
        inputs = {name: tensor.detach() for name, tensor in call.inputs.items()}
        self.uses.append(
            ParameterUse(
                key,
                rule,
                names,
                derived,
                {slot: None if value is None else value.detach() for slot, value in call.weights.items()},
                inputs,
                call.settings,
                get_gradient_edge(output),
                input_edge,
                output.shape,
                sources,
                {name: tensor._version for name, tensor in inputs.items()},
                has_data=has_data,
            )
        )
        if call.then is None:
            return output
        self.mark_as_data(output)
        with self:
            return call.then(output)

    def _note_obstacle(self, func: Function, arguments: tuple, output: object) -> None:
        """Keep the name of a call that leaves a parameter on the graph, where it meets the data."""
        if not torch.is_grad_enabled():
            return
        weights = [tensor for tensor in tensors_in(arguments) if self.is_weight(tensor) and not is_transformed(tensor)]
        names = {name for tensor in weights for name in self.source_names(tensor)} - self.dense - set(self.obstacles)
        if names:
            outputs = [tensor for tensor in tensors_in(output) if tensor.requires_grad]
            names &= {name for tensor in outputs for name in self.source_names(tensor)}
            label = resolve_name(func) or getattr(func, "__name__", str(func))
            has_rule = func in self.rules
            text = f"this form of {label} has no rule" if has_rule else f"no rule for {label}"
            self.obstacles |= dict.fromkeys(names, text)

    def _alias(self, value: Tensor | None) -> Tensor:
        """Return a view of a parameter, or of a tensor computed from parameters, at which :meth:`source_names` stops."""
        alias = required(value).view_as(required(value))
        assert alias.grad_fn is not None
        self.aliases.add(alias.grad_fn)
        return alias

    def _keep_data_leaves(self, args: tuple) -> None:
        """Keep tensors that depend on the data and are leaves: models that differentiate with respect to their input."""
        for tensor in tensors_in(args):
            if (
                tensor.is_leaf
                and tensor.requires_grad
                and id(tensor) not in self.known_leaves
                and self.depends_on_data(tensor)
            ):
                self._keep_leaf(tensor)

    def _keep_leaf(self, leaf: Tensor) -> None:
        self.known_leaves[id(leaf)] = ""
        self.kept_leaves.append(leaf)

    def source_names(self, tensor: Tensor) -> set[str]:
        """Return the names of the parameters on the graph of ``tensor``, except where they enter recorded operations.

        Raises:
            UnsupportedModelError: a leaf of the graph does not belong to the model.
        """
        leaves = graph_leaves(tensor, self.aliases)
        foreign_shapes = [tuple(leaf.shape) for leaf in leaves if id(leaf) not in self.known_leaves]
        if foreign_shapes:
            raise UnsupportedModelError(
                f"a forward pass that uses a tensor of shape {foreign_shapes[0]} that requires gradients and is not a"
                " parameter of the model",
                expected="parameters of the module that forward= receives (a copy of your module is analyzed)",
                hint="use the model argument in forward=lambda model, batch: ..., and register free tensors as nn.Parameter",
            )
        return {self.known_leaves[id(leaf)] for leaf in leaves} - {""}


def _is_ordinary(call: ParsedCall) -> bool:
    """Return True if the tangents of an operation are real numbers, and it is not itself being differentiated.

    Products of complex tangents would need conjugates. Inside torch.func and with dual numbers the output of the
    operation is not what the model computes with.
    """
    tensors = [*call.inputs.values(), *(weight for weight in call.weights.values() if weight is not None)]
    has_dual_numbers = forward_ad._current_level >= 0
    return not has_dual_numbers and not any(tensor.is_complex() or is_transformed(tensor) for tensor in tensors)
