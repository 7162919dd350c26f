"""Inputs of the sweeps of a ledger: the networks, the rows, the change to be explained, and blocks of steps."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from kernelmem.core.batches import Rows
from kernelmem.trajectory.integration.quadrature import Quadrature
from kernelmem.trajectory.integration.step_integral import Integrand
from kernelmem.trajectory.network.network import Network
from kernelmem.trajectory.network.tangent_factors import Tangents
from kernelmem.trajectory.network.weight_blocks import Segments
from kernelmem.trajectory.optimizers import ParameterStep
from kernelmem.trajectory.targets import TargetFunctions
from kernelmem.trajectory.trace import PerExample, TracedSteps


@dataclass(frozen=True)
class SweepSetup:
    """The change that is explained, and the networks that it is computed with."""

    optimizer: str  # name of its class in torch.optim
    n_steps: int  # T, the number of steps of the whole run
    steps: range  # steps whose change is explained
    train_network: Network  # in the modes of training: gradients of the examples
    eval_network: Network  # in eval mode: outputs and tangents of the rows
    rows: Rows  # m rows of x
    target_functions: TargetFunctions  # k functions of their outputs
    loss: PerExample
    quadrature: Quadrature
    coefficients: Tensor | None  # (T + 1,) of the weights in their average, if averaged weights are explained
    advance: Callable[[int], None]  # called with the number of steps that were just done

    @property
    def step_tolerance(self) -> float:
        """Largest accepted residual of one step."""
        return self.quadrature.tolerance / self.n_steps

    def integrand(self, segments: Segments) -> Integrand:
        """Return φ of the rows along segments of the path."""
        return Integrand(self.eval_network, self.rows, segments, self.target_functions)


@dataclass(frozen=True)
class Block:
    """Steps computed in one pass, the gradients of their examples, and inner products of cotangents and gradients."""

    steps: TracedSteps
    gradients: Tangents  # of all examples: rows (1, B_1 + ... + B_S), one direction
    products: list[Tensor]  # of each step, (m, k, B)

    @property
    def batch_sizes(self) -> list[int]:
        """Number of examples in the batch of each step."""
        return [batch.rows.n for batch in self.steps.batches]

    def steps_of_parameter(self, name: str) -> list[ParameterStep | None]:
        """Return the optimizer step of one parameter in each step; None where it did not move."""
        return [step.get(name) for step in self.steps.parameter_steps]
