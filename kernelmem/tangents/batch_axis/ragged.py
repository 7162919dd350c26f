"""Entries of a tensor that belong to examples in any order and number: routed, sorted or packed rows.

The example of each entry is read off two backward passes: with the same cotangents for all examples, and with the
cotangents of example i multiplied by a number t_i, its tag. If an entry of a tensor influences the outputs of example i
alone, its two gradients have the ratio t_i.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

SMALL_GRADIENT = 1e-3  # relative to the largest: the rounding of smaller gradients does not count


@dataclass(frozen=True)
class RaggedAxis:
    """Axis whose entries belong to examples in any order; an example may have several entries, or none.

    Attributes:
        axis: position of the axis in the tensor's shape.
        examples: example of each entry, shape (length of the axis,); -1 if the entry does not influence the outputs.
        n: number of examples.
    """

    axis: int
    examples: Tensor
    n: int

    @cached_property
    def multiplicity(self) -> int:
        """Largest number of entries of one example."""
        used = self.examples[self.examples >= 0]
        return int(torch.bincount(used, minlength=1).max()) if len(used) else 1

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        """Indices of the entries that are used, and their positions in the padded tensor (n · multiplicity, ...)."""
        entries = (self.examples >= 0).nonzero()[:, 0]
        order = torch.argsort(self.examples[entries], stable=True)
        entries = entries[order]
        examples = self.examples[entries]
        first = torch.searchsorted(examples, examples)  # start of the run of equal examples
        slots = torch.arange(len(examples), device=examples.device) - first
        return entries, examples * self.multiplicity + slots

    def fits(self, shape: torch.Size, n: int) -> bool:
        """Return True if a tensor of this shape has one entry for each of the examples."""
        return n == self.n and self.axis < len(shape) and shape[self.axis] == len(self.examples)

    def rows_shape(self, shape: torch.Size, n: int) -> torch.Size:
        """Return the shape of the result of :meth:`rows` for a tensor of shape ``shape``."""
        others = shape[: self.axis] + shape[self.axis + 1 :]
        return torch.Size((n, *((self.multiplicity,) if self.multiplicity > 1 else ()), *others))

    def rows(self, tensor: Tensor, n: int) -> Tensor:
        """Return ``tensor`` with the axis of n examples first; examples with fewer entries than others are padded with 0.

        The shape is (n, other axes), or (n, multiplicity, other axes) if an example has several entries.
        """
        entries, positions = self._places
        batch_first = tensor.movedim(self.axis, 0)
        padded = batch_first.new_zeros(n * self.multiplicity, *batch_first.shape[1:])
        padded[positions] = batch_first[entries]
        return padded if self.multiplicity == 1 else padded.reshape(n, self.multiplicity, *batch_first.shape[1:])


def row_tags(n: int, seed: int = 0) -> Tensor:
    """Return n random tags (float64) between 1 and 2 in absolute value, at least 1/(2n) apart.

    They are irregular, so that the mean of several tags is not another one.
    """
    generator = torch.Generator().manual_seed(2 * n + seed)
    jitter = 0.25 + 0.5 * torch.rand(n, generator=generator, dtype=torch.float64)
    tags = 1 + (torch.randperm(n, generator=generator) + jitter) / n
    return tags * (1 - 2 * torch.randint(0, 2, (n,), generator=generator).double())


def locate_rows(
    gradient: Tensor, tagged_gradient: Tensor, tags: Tensor, axis: int, tolerance: float
) -> RaggedAxis | None:
    """Find the example of each entry along ``axis``; return None if an entry belongs to several examples.

    ``gradient`` is the gradient of Σ_i u·f_i over the examples i, and ``tagged_gradient`` that of Σ_i t_i u·f_i with the
    ``tags`` t (n,). ``tolerance`` is the relative rounding error of gradients.
    """
    length = gradient.shape[axis]
    if gradient.numel() == 0:
        return RaggedAxis(axis, torch.full((length,), -1, device=gradient.device), len(tags))
    unit, tagged = (t.detach().movedim(axis, 0).reshape(length, -1).double() for t in (gradient, tagged_gradient))
    tags = tags.to(unit)
    squares = unit.square().sum(1)
    ratios = (unit * tagged).sum(1) / squares.clamp_min(torch.finfo(squares.dtype).tiny)
    order = torch.argsort(tags)
    upper = torch.searchsorted(tags[order], ratios).clamp(1, len(tags) - 1) if len(tags) > 1 else ratios.long() * 0
    lower = (upper - 1).clamp_min(0)
    is_upper = (tags[order][upper] - ratios).abs() < (tags[order][lower] - ratios).abs()
    examples = order[torch.where(is_upper, upper, lower)]
    norms = tagged.norm(dim=1)
    residuals = (tagged - tags[examples][:, None] * unit).norm(dim=1)
    negligible = tolerance * SMALL_GRADIENT * norms.max()
    if bool((residuals > tolerance * norms + negligible).any()):
        return None
    examples[(squares == 0) & (norms == 0)] = -1
    return RaggedAxis(axis, examples, len(tags))
