"""Embedding tables that are used by lookups only: the kernel is a sum over pairs of positions with the same token."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.tangents.capture import ParameterUse
from kernelmem.tangents.groups.base import Buffers, Combination, Combine, Group
from kernelmem.tangents.rules.embedding import EmbeddingRule

BLOCK_NUMBERS = 2**22  # numbers in the operands and results of one batched product


@dataclass(frozen=True)
class TableGroup(Group):
    """Group of one embedding table, whose tangents are Σ_s e_v(s) ⊗ g_s over positions s with tokens v(s).

    K = Σ_st [v(s) = v(t)] g_s · g_t: the table of tangents, of V rows, is never formed.
    """

    positions: int  # S, of all uses together
    rows: int  # V
    width: int  # d

    def numbers_per_row(self, k: int) -> int:
        """Return the number of tokens and output gradients of one example, with k output directions."""
        return self.positions * (1 + k * self.width)

    def accepts(self, uses: Sequence[ParameterUse], n: int) -> bool:
        """Return True if the table is used by lookups of the expected number of positions, all in the same layout."""
        if not all(isinstance(use.rule, EmbeddingRule) and not use.derived for use in uses):
            return False
        shapes = [use.rule.outer_shape(use, n) for use in uses]
        layouts = {use.settings["layout"] for use in uses}
        positions = sum(shape.positions for shape in shapes if shape is not None)
        return None not in shapes and len(layouts) == 1 and positions == self.positions

    def tangent_sum(
        self, tangents: Buffers, uses: Sequence[ParameterUse], combination: Combination, combine: Combine
    ) -> Tensor:
        """Return Σ_i Σ_s w_i e_v(s) ⊗ Σ_c u_c g_isc as one vector, in the layout of the parameter."""
        tokens, gradients = tangents["tokens"], tangents["gradients"]
        combined = torch.einsum("nskd,k,n->nsd", gradients, combination.directions, combination.examples)
        used = tokens >= 0
        table = combined.new_zeros(self.rows, self.width).index_add_(0, tokens[used], combined[used])
        return uses[0].rule.to_weight_shape(uses[0], table[None, None])[0, 0].flatten()

    def expected_sum(self, gradients: Mapping[str, Tensor], uses: Sequence[ParameterUse], like: Tensor) -> Tensor:
        """Return the gradient of the table as one vector."""
        weight = uses[0].weights["weight"]
        assert weight is not None
        gradient = gradients.get(self.names[0])
        return torch.zeros_like(weight).flatten() if gradient is None else gradient.flatten()

    def write(self, uses, gradients, n, k, combine, *, like, cache=None, out=None) -> Buffers:
        """Return a dict with the tokens (n, S), -1 for none, and the output gradients (n, S, k directions, d)."""
        tokens, output_gradients = [], []
        for use, gradient in zip(uses, gradients, strict=True):
            assert isinstance(use.rule, EmbeddingRule)
            if isinstance(gradient, Tensor):
                tokens.append(use.rule.tokens(use, n))
                output_gradients.append(use.rule.output_gradients(use, gradient)[:, 0])
        if not tokens:  # the outputs do not depend on the table
            shape = n, self.positions
            return {
                "tokens": torch.full(shape, -1, device=like.device),
                "gradients": like.new_zeros(*shape, k, self.width),
            }
        if len(tokens) == 1:
            return {"tokens": tokens[0], "gradients": output_gradients[0]}
        return {"tokens": torch.cat(tokens, 1), "gradients": torch.cat(output_gradients, 1)}

    def add(self, out: Tensor, x: Buffers, y: Buffers, combine: Combine, *, symmetric: bool) -> None:
        """Add Σ_st [v(s) = v(t)] g_s · g_t to ``out``, over positions s of examples in ``x`` and t of examples in ``y``.

        Tokens are treated in batches of equal numbers of examples that contain them; those that most examples contain are
        contracted by one product of all examples.
        """
        n, m = len(x["tokens"]), len(y["tokens"])
        left = _Lookups.from_buffers(x)
        right = left if x is y else _Lookups.from_buffers(y)
        is_shared = torch.isin(left.tokens, right.tokens)
        places = torch.searchsorted(right.tokens, left.tokens[is_shared])
        left_starts, left_counts = left.starts[is_shared], left.counts[is_shared]
        right_starts, right_counts = right.starts[places], right.counts[places]
        is_frequent = 2 * left_counts * right_counts >= n * m
        for part in is_frequent.nonzero()[:, 0].split(_tokens_per_block((n + m) * left.numbers)):
            rows = [
                side.spread(starts[part], counts[part], length)
                for side, starts, counts, length in (
                    (left, left_starts, left_counts, n),
                    (right, right_starts, right_counts, m),
                )
            ]  # (k, rows, tokens · d) each
            _add_products(out, rows[0], rows[1], combine)
        rare = (~is_frequent).nonzero()[:, 0]
        codes = left_counts[rare] * (m + 1) + right_counts[rare]
        for code in codes.unique().tolist():
            r, c = divmod(code, m + 1)
            size = _tokens_per_block((r + c) * left.numbers + r * c * (left.k**2 if combine == "full" else 1))
            for part in rare[codes == code].split(size):
                first = left_starts[part, None] + torch.arange(r, device=part.device)
                second = right_starts[part, None] + torch.arange(c, device=part.device)
                places = left.examples[first][:, :, None], right.examples[second][:, None, :]
                for target, products in _block_products(out, left.gradients[first], right.gradients[second], combine):
                    target.index_put_(places, products, accumulate=True)


@dataclass(frozen=True)
class _Lookups:
    """Output gradients of the examples of a tile, summed over positions with the same token and sorted by token.

    Attributes:
        tokens: tokens that occur, (T,), ascending.
        starts: first entry of each token, (T,).
        counts: number of entries (examples) of each token, (T,).
        examples: example of each entry, (E,), ascending within a token.
        gradients: summed output gradients of each entry, (E, k, d).
    """

    tokens: Tensor
    starts: Tensor
    counts: Tensor
    examples: Tensor
    gradients: Tensor

    @classmethod
    def from_buffers(cls, buffers: Buffers) -> "_Lookups":
        """Sum and sort the positions of n examples, from their tokens (n, S) and gradients (n, S, k, d)."""
        tokens, gradients = buffers["tokens"].flatten(), buffers["gradients"].flatten(0, 1)
        n, S = buffers["tokens"].shape
        examples = torch.arange(n, device=tokens.device).repeat_interleave(S)
        used = tokens >= 0
        if not bool(used.all()):
            tokens, gradients, examples = tokens[used], gradients[used], examples[used]
        entries, entry_of_position = torch.unique(tokens * n + examples, return_inverse=True)
        summed = gradients.new_zeros(len(entries), *gradients.shape[1:]).index_add_(0, entry_of_position, gradients)
        unique_tokens, counts = torch.unique_consecutive(entries // n, return_counts=True)
        return cls(unique_tokens, counts.cumsum(0) - counts, counts, entries % n, summed)

    @property
    def k(self) -> int:
        """Number of output directions."""
        return self.gradients.shape[1]

    @property
    def numbers(self) -> int:
        """Numbers in the gradients of one entry."""
        return self.gradients[:1].numel()

    def spread(self, starts: Tensor, counts: Tensor, n: int) -> Tensor:
        """Return the gradients (k, n examples, tokens · d) of some tokens, 0 for examples without them."""
        token_of_entry = torch.arange(len(starts), device=starts.device).repeat_interleave(counts)
        entries = torch.arange(len(token_of_entry), device=starts.device)
        entries = entries - (counts.cumsum(0) - counts - starts)[token_of_entry]
        k, width = self.gradients.shape[1:]
        spread = self.gradients.new_zeros(n, len(starts), k, width)
        spread[self.examples[entries], token_of_entry] = self.gradients[entries]
        return spread.permute(2, 0, 1, 3).reshape(k, n, -1)


def _tokens_per_block(numbers: int) -> int:
    """Return how many tokens to treat at a time, of so many numbers each."""
    return max(1, BLOCK_NUMBERS // max(1, numbers))


def _add_products(out: Tensor, left: Tensor, right: Tensor, combine: Combine) -> None:
    """Add the products of left (k, n, p) and right (k, m, p) to ``out``, for the pairs of directions of ``combine``."""
    k, n, m = len(left), left.shape[1], right.shape[1]
    if combine == "sum":
        out.addmm_(left.movedim(0, 1).reshape(n, -1), right.movedim(0, 1).reshape(m, -1).T)
    elif combine == "diagonal":
        for direction in range(k):
            out[direction].addmm_(left[direction], right[direction].T)
    else:
        out += (left.reshape(k * n, -1) @ right.reshape(k * m, -1).T).view(k, n, k, m).permute(1, 0, 3, 2)


def _block_products(out: Tensor, left: Tensor, right: Tensor, combine: Combine) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield views of ``out`` with axes (n, m) first, and what is to be added at T blocks of rows and columns, (T, r, c, ...).

    The gradients are left (T tokens, r rows, k, d) and right (T, c columns, k, d).
    """
    T, r, k, width = left.shape
    c = right.shape[1]
    if combine == "sum":
        yield out, torch.bmm(left.flatten(2), right.flatten(2).mT)
    elif combine == "diagonal":
        for direction in range(k):
            yield out[direction], torch.bmm(left[:, :, direction], right[:, :, direction].mT)
    else:
        products = torch.bmm(left.reshape(T, r * k, width), right.reshape(T, c * k, width).mT)
        yield out.transpose(1, 2), products.view(T, r, k, c, k).transpose(2, 3)
