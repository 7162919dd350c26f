"""Adjoint momentum of a weight, kept as outer factors of the steps that it is a sum of.

With momentum and no denominators, A_t = Σ_j α_j J̄_j is a combination of the mean tangents of later steps. If the weight is
used at one position per row, each of these is Σ_q g_jq ⊗ a_jq, and so A_t · (e ⊗ b) = Σ_j α_j Σ_q (a_jq · b)(g_jq · e), without
a number per row, output and parameter. The first layer of a network has the same inputs a in all steps, whose gradients are
added up; the factors of other layers grow from step to step, until a dense adjoint takes less.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.trajectory.network.tangent_factors import OuterFactors
from kernelmem.trajectory.optimizers import AdjointState, ParameterFilter, ParameterStep

MIN_NUMBERS = 2**20  # of a dense adjoint; a smaller one stays in cache
DENSE_SHARE = 0.5  # of the operations and memory of a dense adjoint, up to which factors are kept


@dataclass(frozen=True)
class _Term:
    """The mean tangents of m rows in one step, Σ_q g_q ⊗ a_q over q nodes."""

    activations: Tensor  # (q, m, in)
    gradients: Tensor  # (q, m, k, out)

    @classmethod
    def from_factors(cls, factors: OuterFactors) -> "_Term":
        """Return the term of one segment; nodes are added up if all of them have the same activations."""
        assert factors.activations is not None
        a, g = factors.activations[0].detach(), factors.gradients[0].detach()
        if torch.equal(a, a[:1].expand_as(a)):
            return cls(a[:1], g.sum(0, keepdim=True))
        return cls(a, g)

    def has_activations_of(self, other: "_Term") -> bool:
        """Return True if both terms have the same activations at all nodes."""
        return torch.equal(self.activations, other.activations)


class FactoredAdjoint:
    """Adjoint q = Σ_j c_j Σ_q g_jq ⊗ a_jq of one weight (out, in), for m rows and k functions."""

    def __init__(self, parameter_filter: ParameterFilter, m: int, k: int, n_out: int, n_in: int) -> None:
        """Start with q = 0."""
        self.filter, self.factor = parameter_filter, 0.0
        self.m, self.k, self.n_out, self.n_in = m, k, n_out, n_in
        self.terms: list[_Term] = []
        self.coefficients = torch.zeros(0, dtype=torch.float64)

    def add_step(
        self, J: OuterFactors | None, gradients: OuterFactors, step: ParameterStep, product: Tensor
    ) -> Tensor | None:
        """Apply the recursion for one step, add A_t · g_i of its examples to ``product`` (m, k, B), and return its decay.

        ``J`` are the mean tangents of the step (None: zero), ``gradients`` those of its B examples; the decay is (m, k),
        or None without decay.
        """
        cotangent = torch.zeros(len(self.terms) + (J is not None), dtype=torch.float64)
        if J is not None:
            self.terms.append(_Term.from_factors(J))
            cotangent[-1] = 1.0
        q = cotangent.new_zeros(len(cotangent))
        q[: len(self.coefficients)] = self.coefficients
        state = AdjointState(q, self.factor)
        # The recursion is linear with the same scalars for all entries: it is applied to the coefficients of the terms.
        A = self.filter.adjoint_step(cotangent, step, state)
        decay = None
        if step.weights is not None:
            decay = step.options["weight_decay"] * self._inner_products(A, step.weights)
        if not step.frozen:
            self._contract(-A if step.options.get("maximize") else A, gradients, product)
        assert state.q is not None
        self.coefficients, self.factor = state.q, state.factor
        self._merge_last_terms()
        return decay

    def exceeds_dense(self, n_examples: int, *, has_decay: bool) -> bool:
        """Return True if a step with ``n_examples`` takes more operations or memory than a dense adjoint should."""
        n_nodes = sum(len(term.activations) for term in self.terms)
        numbers_per_node = self.n_in + self.k * self.n_out
        if has_decay:
            numbers_per_node += self.n_in * self.n_out / n_examples
        return n_nodes * numbers_per_node > DENSE_SHARE * self.k * self.n_out * self.n_in

    def form(self, width: int) -> list[tuple[slice, Tensor]]:
        """Return pairs of a slice of about ``width`` entries of the flattened weight, and q there (m, k, entries).

        The factors are freed.
        """
        a = torch.cat([term.activations for term in self.terms]).transpose(0, 1)  # (m, Q, in)
        g = torch.cat([c * term.gradients for c, term in zip(self.coefficients, self.terms, strict=True)])
        self.terms.clear()
        g = g.permute(1, 2, 3, 0)  # (m, k, out, Q)
        tiles, n_units = [], max(1, width // self.n_in)
        for start in range(0, self.n_out, n_units):
            units = g[:, :, start : start + n_units]
            tile = torch.bmm(units.flatten(1, 2), a).view(self.m, self.k, -1)
            tiles.append((slice(start * self.n_in, (start + units.shape[2]) * self.n_in), tile))
        return tiles

    def _contract(self, A: Tensor, gradients: OuterFactors, product: Tensor) -> None:
        """Add Σ_j A_j Σ_q (a_jq · b)(g_jq · e) to ``product`` (m, k, B); b (B, in) and e (B, out) are those of the examples."""
        assert gradients.activations is not None
        b, e = gradients.activations[0, 0], gradients.gradients[0, 0, :, 0]
        for coefficient, term in zip(A.tolist(), self.terms, strict=True):
            if coefficient:
                a, g = term.activations, term.gradients
                inner = (a.flatten(0, 1) @ b.T).mul_(coefficient).view(*a.shape[:2], 1, -1)  # (q, m, 1, B)
                terms = (g.flatten(0, 2) @ e.T).view(*g.shape[:3], -1).mul_(inner)  # (q, m, k, B)
                for node in terms:
                    product.add_(node)

    def _inner_products(self, A: Tensor, weights: Tensor) -> Tensor:
        """Return Σ_j A_j (J̄_j · weights), (m, k)."""
        total = torch.zeros(self.m, self.k, dtype=torch.float64)
        for coefficient, term in zip(A.tolist(), self.terms, strict=True):
            if coefficient:
                a, g = term.activations, term.gradients
                changes = (a.flatten(0, 1) @ weights.view(self.n_out, self.n_in).T).view(*a.shape[:2], -1, 1)
                total.add_((g @ changes)[..., 0].sum(0), alpha=coefficient)
        return total

    def _merge_last_terms(self) -> None:
        """Add up the gradients of the last two terms if they have the same activations."""
        if len(self.terms) < 2 or not self.terms[-1].has_activations_of(self.terms[-2]):
            return
        before, last = self.terms[-2:]
        c_before, c_last = self.coefficients[-2:].tolist()
        gradients = (c_before * before.gradients).add_(last.gradients, alpha=c_last)
        self.terms[-2:] = [_Term(last.activations, gradients)]
        self.coefficients = torch.cat([self.coefficients[:-2], torch.ones(1, dtype=torch.float64)])
