"""Use of parameters by one operation of a forward pass."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from kernelmem.core.errors import UnsupportedModelError
from kernelmem.tangents.batch_axis import BatchAxis, RaggedAxis
from kernelmem.tangents.capture.rule import Rule


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
