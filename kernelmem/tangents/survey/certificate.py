"""Certificate of a pass: its tangents agree with autograd's gradient of a random weighted sum of its outputs.

With random weights w_i of the n examples and u_c of the output directions, Σ_i Σ_c w_i u_c J_ic, assembled from the
tangents J_ic that the engine contracts, must equal the gradient of Σ_i Σ_c w_i u_c (v_c · f_i) with respect to every
parameter, which autograd computes in one backward pass through the same graph. Uses that are missing, wrong or
attributed to another example change the sum, since the weights of the examples differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernelmem.tangents.capture import Capture, backward_pass
from kernelmem.tangents.prepare import PreparedModel
from kernelmem.tangents.survey.locate import random_outputs

SMALL_SHARE = 1e-2  # of the norm of the whole gradient: rounding of parameters with smaller gradients does not count
NORMS_IN_FLOAT32 = 1e-12, 1e15  # between these, squares neither overflow nor vanish


@dataclass(eq=False)  # not frozen: context managers set the traceback of an exception that passes them
class PassMismatchError(Exception):
    """Tangents of some parameters differ from autograd's gradient in a pass (internal: the engine handles it)."""

    names: frozenset[str]
    relative_error: float = float("inf")


@dataclass
class Certificate:
    """Sums of tangents in comparison with gradients by autograd, over the passes of one set of examples."""

    prepared: PreparedModel
    gradients: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[tuple[str, ...], Tensor] = field(default_factory=dict)  # names of a group -> sum of its tangents
    captured: Capture | None = None  # the last pass

    def add_pass(self, captured: Capture, cotangent: Tensor) -> None:
        """Add the gradients of Σ_i cotangent_i · f_i with respect to all parameters, by one backward pass."""
        if not captured.outputs.requires_grad:
            return
        self.captured = captured
        parameters = self.prepared.parameters
        gradients = backward_pass(captured.outputs, list(parameters.values()), cotangent)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                gradient = gradient.to_dense()
                self.gradients[name] = self.gradients[name] + gradient if name in self.gradients else gradient

    def add_tangents(self, names: tuple[str, ...], tangent_sum: Tensor) -> None:
        """Add Σ_i Σ_c w_i u_c J_ic of a group of parameters, or linear functions of it."""
        self.sums[names] = self.sums[names] + tangent_sum if names in self.sums else tangent_sum

    def check(self, expected_sums: Mapping[tuple[str, ...], Tensor]) -> None:
        """Compare the sums with ``expected_sums``, those of the gradients; parameters without a sum must have no gradient.

        Raises:
            PassMismatchError: sums that differ by more than rounding; it names the parameters.
        """
        norms = {name: _norm(gradient) for name, gradient in self.gradients.items()}
        if not norms:
            return
        compared = {name for names in self.sums for name in names}
        differences: dict[tuple[str, ...], Tensor] = {
            (name,): norm for name, norm in norms.items() if name not in compared
        }
        for names, tangent_sum in self.sums.items():
            differences[names] = (tangent_sum.double() - expected_sums[names].double()).norm()
        scale = torch.stack(list(norms.values())).norm()
        wrong = self._wrong_groups(differences, norms, scale)
        if wrong:  # the gradients may be rounding errors, as those of a sum of outputs that is constant
            wrong = self._wrong_groups(differences, norms, torch.maximum(scale, self._generic_norm()))
        if wrong:
            raise PassMismatchError(frozenset(name for names in wrong for name in names), max(wrong.values()))

    def _wrong_groups(
        self, differences: Mapping[tuple[str, ...], Tensor], norms: Mapping[str, Tensor], scale: Tensor
    ) -> dict[tuple[str, ...], float]:
        """Return the groups whose differences exceed rounding, with their relative errors."""
        floor = (SMALL_SHARE * scale).clamp_min(torch.finfo(scale.dtype).tiny)
        tolerance = self.prepared.tolerance(1e-4, 1e-9)
        wrong = {}
        for names, difference in differences.items():
            group_norm = torch.stack([norms[name] for name in names if name in norms] or [floor]).norm()
            error = float(difference / torch.maximum(group_norm, floor))
            if not error <= tolerance:
                wrong[names] = error
        return wrong

    def _generic_norm(self) -> Tensor:
        """Return the norm of the gradient of a random combination of all outputs in the last pass."""
        assert self.captured is not None
        cotangent = random_outputs(self.captured).expand(self.captured.n, -1)
        parameters = list(self.prepared.parameters.values())
        gradients = torch.autograd.grad(
            self.captured.outputs, parameters, cotangent, retain_graph=True, allow_unused=True
        )
        return torch.stack(
            [gradient.to_dense().double().norm() for gradient in gradients if gradient is not None]
        ).norm()


def _norm(tensor: Tensor) -> Tensor:
    """Return the norm (float64) of a tensor, whose squares may overflow or vanish in its own dtype."""
    norm = tensor.norm()
    is_reliable = NORMS_IN_FLOAT32[0] < float(norm) < NORMS_IN_FLOAT32[1]
    return norm.double() if is_reliable else tensor.double().norm()
