"""Rules and uses: base classes of the operations that use parameters, the parsed form of a call, and one recorded use."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from kernelmem.core.errors import UnsupportedModelError
from kernelmem.tangents.batch_axis import BatchAxis, RaggedAxis


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


class UseKey(NamedTuple):
    """Identity of a use of parameters: what is used, and the how-manieth use of that kind in the pass it is."""

    rule: str
    slots: tuple[tuple[str, str], ...]  # (slot, name of the parameter, or names of those it is computed from)
    ordinal: int


@dataclass
class ParameterUse:
    """One use of parameters by one operation of the forward pass."""

    key: UseKey
    rule: Rule
    names: dict[str, str]  # slot -> parameter name
    derived: dict[str, Tensor]  # slot -> tensor computed from parameters, with its graph
    weights: dict[str, Tensor | None]  # all slots, as passed to the operation (detached)
    inputs: dict[str, Tensor]
    settings: dict[str, Any]
    edge: GradientEdge  # autograd edge of the output
    input_edge: GradientEdge | None  # autograd edge of the activation "input", if it is on the graph
    output_shape: torch.Size
    sources: dict[str, dict[str, Tensor]]  # derived slot -> the parameters it is computed from
    versions: dict[str, int]
    batch_axis: BatchAxis | RaggedAxis = field(default_factory=lambda: BatchAxis(0))
    located: bool = False  # whether the batch axis is known
    has_data: bool = True  # whether an input depends on the data

    @property
    def slots(self) -> set[str]:
        """Slots (such as "weight" and "bias") that hold a parameter, or a tensor computed from parameters."""
        return {*self.names, *self.derived}

    @property
    def parameters(self) -> set[str]:
        """Names of all parameters that enter the operation, directly or through a tensor computed from them."""
        return set(self.names.values()).union(*self.sources.values())

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
        return self.batch_axis.rows_shape(self.output_shape, n)

    def is_supported(self, n: int) -> bool:
        """Return True if the rule can compute tangents of n examples along the batch axis."""
        return self.rule.outer_shape(self, n) is not None or self.rule.is_direct(self)


def required(value: Tensor | None) -> Tensor:
    """Return ``value``, the tensor of a slot that is never empty, with the type Tensor."""
    assert value is not None
    return value
