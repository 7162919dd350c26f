"""Averaged weights (EMA, SWA) at the end of a run: one more segment of the path, with a share in every step's cotangent."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.trajectory.network.weight_blocks import Segments


@dataclass
class WeightAverage:
    """Segment from the last weights w_T to averaged weights w̃: w̃ − w_T = Σ_t γ_t d_t + rounding, d_t the steps of the run.

    γ_t = −Σ_{u<=t} a_u, where a_u is the coefficient of the weights after u steps in the average.
    """

    tangents: Tensor  # (m, k, P): mean tangents J̃ of the segment
    slices: dict[str, slice]
    shares: Tensor  # (T,): γ
    remainder: Tensor  # (P,): w̃ − w_T minus γ_t d_t of the steps subtracted so far

    def add_share(self, J: Tensor, name: str, rows: slice | Tensor, parameter_slice: slice, first_step: int) -> Tensor:
        """Return J̄_t + γ_t J̃ for S steps, (S, r, k, p): r rows, k functions, p entries of a parameter.

        ``J`` holds the mean tangents J̄_t of the steps, of which ``first_step`` is the first; J̃ is that of the
        segment to the averaged weights.
        """
        offset = self.slices[name].start
        segment_tangents = self.tangents[rows][..., offset + parameter_slice.start : offset + parameter_slice.stop]
        return J + self.shares[first_step : first_step + len(J), None, None, None] * segment_tangents

    def subtract_steps(self, segments: Segments, rounding: Tensor, first_step: int) -> Tensor:
        """Subtract γ_t d_t of S steps from the remainder, and return the effect (m, k) of their rounding.

        ``rounding`` (S, P) is that of the steps; the effect is on k functions of m rows.
        """
        shares = self.shares[first_step : first_step + len(segments)]
        steps = torch.cat([step.reshape(len(step), -1) for step in segments.steps().values()], 1)
        self.remainder -= shares @ steps
        return self.tangents @ (shares @ rounding)
