"""Averaged weights (EMA, SWA) at the end of a run: one more segment, and a share of it in every step's cotangent."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.trajectory.network.weight_blocks import Segments

__all__ = ["WeightAverage"]


@dataclass
class WeightAverage:
    """The last segment of a run whose weights were averaged: w̃ − w_T = Σ_t γ_t d_t + rounding, γ_t = −Σ_{u<=t} a_u."""

    tangents: Tensor  # (m, k, P) mean tangents of the segment
    slices: dict[str, slice]
    shares: Tensor  # (T,) γ
    left: Tensor  # (P,): w̃ − w_T less the γ_t d_t that were passed

    def added(self, own: Tensor, name: str, who: slice | Tensor, part: slice, first: int) -> Tensor:
        """J̄_t + γ_t J̃ for a slice (S, r, k, p) of the steps from ``first`` on."""
        start = self.slices[name].start
        of_segment = self.tangents[who][..., start + part.start : start + part.stop]
        return own + self.shares[first : first + len(own), None, None, None] * of_segment

    def passed(self, segments: Segments, rounding: Tensor, first: int) -> Tensor:
        """Count steps as passed; what their rounding (S, P) did to the average, (m, k)."""
        shares = self.shares[first : first + len(segments)]
        steps = torch.cat([step.reshape(len(step), -1) for step in segments.steps().values()], 1)
        self.left -= shares @ steps
        return self.tangents @ (shares @ rounding)
