"""One forward pass, with every operation that uses a parameter met on the way.

A ``TorchFunctionMode`` sees each torch call of the forward pass. Where a rule knows the operation, the parameters enter
it detached, the rule keeps what it needs (the input activations), and the autograd edge of the output is kept, so that
later sweeps give output gradients and never form a weight gradient. A parameter that still hangs on the graph after the
pass was used in a way that no rule knows: it is reported as uncovered, and the dense fallback takes it. So functional
use of weights, modules called twice and unknown layers are covered or reported, never lost.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from kernelmem.ground.errors import UnsupportedModelError
from kernelmem.tangents.features import Feature
from kernelmem.tangents.prepare import Prepared

__all__ = ["Capture", "Rule", "Use", "capture"]


class Rule(Protocol):
    """What is known about one kind of operation: see ``linear.py`` for the shortest one."""

    functions: tuple[Callable[..., Any], ...]

    def parameters(self, args: tuple, kwargs: dict) -> dict[str, Any]:
        """Map the operation's arguments to slots: {"input": ..., "weight": ..., "bias": ...}."""
        ...

    def call(self, function: Callable[..., Any], args: tuple, kwargs: dict, slots: dict[str, Any]) -> Tensor:
        """Run the operation with the (detached) slots."""
        ...

    def covers(self, use: "Use", n: int) -> bool:
        """Whether this use, met in a batch of n rows, has a form that the rule can contract."""
        ...

    def feature(self, use: "Use", gradients: Tensor) -> Feature:
        """Factored tangents from output gradients (n, k, ...)."""
        ...


@dataclass
class Use:
    """One use of parameters by one operation."""

    rule: Rule
    names: dict[str, str]  # slot -> parameter name, the selected parameters only
    slots: dict[str, Any]  # what entered the operation
    edge: GradientEdge  # of its output
    output_shape: torch.Size
    versions: dict[str, int] = field(default_factory=dict)

    @property
    def input(self) -> Tensor:
        """The operation's input activations; refused if something wrote over them after the operation."""
        tensor = self.slots["input"]
        if tensor._version != self.versions["input"]:
            raise UnsupportedModelError(
                f"a model that writes in place over the input of the layer with {', '.join(self.names.values())}",
                expected="activations that stay as they were when a layer read them",
                do="replace the in-place operation after that layer's input (inplace=True, +=, relu_) by a plain one",
            )
        return tensor


@dataclass(frozen=True)
class Capture:
    """Outputs of n rows with their graph, the uses that rules cover, and the parameters that none covers."""

    outputs: Tensor  # (n, C)
    uses: tuple[Use, ...]
    uncovered: tuple[str, ...]

    def sweep(self, cotangents: Sequence[Tensor], *, last: bool = True) -> list[Tensor | None]:
        """Output gradients of every use, (n, k, ...), for k cotangents of shape (n, C): k backward sweeps."""
        edges = [use.edge for use in self.uses]
        if not edges:
            return []
        stacked: list[Tensor | None] = [None] * len(edges)
        for k, cotangent in enumerate(cotangents):
            gradients = torch.autograd.grad(
                self.outputs,
                edges,
                cotangent,
                retain_graph=not (last and k == len(cotangents) - 1),
                allow_unused=True,
            )
            for position, gradient in enumerate(gradients):
                if gradient is None:
                    continue
                target = stacked[position]
                if target is None:
                    shape = (gradient.shape[0], len(cotangents), *gradient.shape[1:])
                    stacked[position] = target = gradient.new_zeros(shape)
                target[:, k] = gradient
        return stacked


def capture(prepared: Prepared, batch: Any, n: int, rules: Sequence[Rule], declined: Iterable[str] = ()) -> Capture:
    """Run the prepared model on a batch of n rows and record every use of its parameters.

    Parameters in ``declined``, and those with a use that no rule covers, are left on the graph and reported as
    uncovered. Cost: one forward pass, and one more for each round in which a rule declines.
    """
    declined = set(declined)
    while True:
        recorder = _Recorder(prepared.parameters, rules, declined)
        with torch.enable_grad(), recorder:
            outputs = prepared.outputs(batch, n)
        refused = {name for use in recorder.uses if not use.rule.covers(use, n) for name in use.names.values()}
        reached = _parameters_on_graph(outputs, prepared.parameters)
        # One unexplained use makes the parameter's other uses unusable on their own: take them off and run again.
        mixed = {name for use in recorder.uses for name in use.names.values()} & (
            refused | reached | _repeated(recorder)
        )
        if not mixed - declined:
            return Capture(outputs, tuple(recorder.uses), tuple(n for n in prepared.parameters if n in reached))
        declined |= mixed


def _repeated(recorder: "_Recorder") -> set[str]:
    """Parameters with more than one use: their tangents must be summed before they are contracted."""
    names = [name for use in recorder.uses for name in use.names.values()]
    return {name for name in names if names.count(name) > 1}


class _Recorder(TorchFunctionMode):
    def __init__(self, parameters: dict[str, nn.Parameter], rules: Sequence[Rule], declined: set[str]) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in parameters.items() if name not in declined}
        self.rules = {function: rule for rule in rules for function in rule.functions}
        self.uses: list[Use] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        rule = self.rules.get(func)
        if rule is None or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        slots = rule.parameters(args, kwargs)
        names = {slot: self.names[id(value)] for slot, value in slots.items() if id(value) in self.names}
        if not names:
            return func(*args, **kwargs)
        slots.update({slot: slots[slot].detach() for slot in names})
        output = rule.call(func, args, kwargs, slots)
        if not output.requires_grad:  # nothing before it was tracked: the graph starts here
            output = output.detach().requires_grad_().clone()
        kept = {slot: value.detach() if isinstance(value, Tensor) else value for slot, value in slots.items()}
        versions = {slot: value._version for slot, value in kept.items() if isinstance(value, Tensor)}
        self.uses.append(Use(rule, names, kept, get_gradient_edge(output), output.shape, versions))
        return output


def _parameters_on_graph(outputs: Tensor, parameters: dict[str, nn.Parameter]) -> set[str]:
    """Names of the parameters that the autograd graph of ``outputs`` reaches."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    if id(outputs) in names:
        return {names[id(outputs)]}
    reached: set[str] = set()
    seen: set[Any] = set()
    stack = [outputs.grad_fn] if outputs.grad_fn is not None else []
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) in names:
            reached.add(names[id(variable)])
        stack.extend(parent for parent, _ in node.next_functions if parent is not None)
    return reached
