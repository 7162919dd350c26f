"""Certification of the passes of a kernel computation, and of the independence of rows."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kernelmem.core.batches import Batch, Rows
from kernelmem.core.errors import VerificationError
from kernelmem.tangents.batch_axis import row_tags
from kernelmem.tangents.engine.backward import ForwardPass, ResidentRows
from kernelmem.tangents.engine.plan import Plan
from kernelmem.tangents.groups.base import Buffers, Combination, Combine, Group
from kernelmem.tangents.prepare import PreparedModel
from kernelmem.tangents.survey import Certificate


def certify_pass(
    prepared: PreparedModel,
    forward_pass: ForwardPass,
    tangents: Sequence[Buffers],
    plan: Plan,
    block: range,
    combine: Combine,
) -> None:
    """Compare the tangents of one pass, those of all groups and then of the dense parameters, with autograd.

    Groups without tangents (contracted once for all directions, in another pass) are left out.

    Raises:
        PassMismatchError: tangents that differ from the gradients.
    """
    combination, cotangents = forward_pass.combination(block, row_tags(forward_pass.n, seed=1).to(forward_pass.outputs))
    certificate = Certificate(prepared)
    certificate.add_pass(forward_pass.captured, cotangents)
    expected_sums = {}
    like = forward_pass.outputs.detach()
    for group, uses, group_tangents in zip(plan.groups, forward_pass.group_uses, tangents, strict=False):
        if not group_tangents:
            for name in group.names:
                certificate.gradients.pop(name, None)
            continue
        group_combination = _combination_of(group, combination)
        total = group.tangent_sum(group_tangents, uses, group_combination, combine)
        certificate.add_tangents(group.names, group.compared(total, uses, group_combination))
        expected_sums[group.names] = group.expected_sum(certificate.gradients, uses, like)
    for name, dense_tangents in zip(plan.dense, tangents[len(plan.groups) :], strict=True):
        tangent_sum = torch.einsum(
            "n,k,nkp->p", combination.examples, combination.directions, dense_tangents["tangents"]
        )
        certificate.add_tangents((name,), tangent_sum)
        gradient = certificate.gradients.get(name)
        expected_sums[(name,)] = torch.zeros_like(tangent_sum) if gradient is None else gradient.flatten()
    certificate.check(expected_sums)


class SideCertificate:
    """Certificate of all passes of one side of a kernel, whose groups are contracted one direction after another."""

    def __init__(self, prepared: PreparedModel, side: ResidentRows) -> None:
        self.certificate, self.side = Certificate(prepared), side
        self.combinations: list[Combination] = []
        self.examples = row_tags(side.n, seed=1).to(side.forward_passes[0].outputs)
        start = 0
        for forward_pass in side.forward_passes:
            examples = self.examples[start : start + forward_pass.n]
            combination, cotangents = forward_pass.combination(range(forward_pass.sweeps), examples)
            self.certificate.add_pass(forward_pass.captured, cotangents)
            self.combinations.append(combination)
            start += forward_pass.n

    def add(self, index: int, tangents: Buffers, block: range, combine: Combine) -> None:
        """Add the tangents of the group ``index`` in the directions of ``block``, for all examples of the side."""
        first_pass = self.side.forward_passes[0]
        group, combination = first_pass.groups[index], self.combinations[0]
        directions = combination.directions[block.start : block.stop]
        combination = replace(combination, examples=self.examples, directions=directions)
        tangent_sum = group.tangent_sum(
            tangents, first_pass.group_uses[index], _combination_of(group, combination), combine
        )
        self.certificate.add_tangents(group.names, tangent_sum)

    def check(self) -> None:
        """Compare the sums of the tangents with the gradients.

        Raises:
            PassMismatchError: tangents that differ from the gradients.
        """
        first_pass = self.side.forward_passes[0]
        like = first_pass.outputs.detach()
        sums, expected_sums = self.certificate.sums, {}
        for group, uses in zip(first_pass.groups, first_pass.group_uses, strict=True):
            expected_sums[group.names] = group.expected_sum(self.certificate.gradients, uses, like)
            if group.names in sums:
                combination = _combination_of(group, self.combinations[0])
                sums[group.names] = group.compared(sums[group.names], uses, combination)
        self.certificate.check(expected_sums)


def _combination_of(group: Group, combination: Combination) -> Combination:
    """Return the combination for a group, with one direction if the group is contracted once for all directions."""
    if not group.all_directions:
        return combination
    return replace(combination, directions=torch.ones_like(combination.directions[:1]))


def check_rows_are_independent(prepared: PreparedModel, batch: Batch, outputs: Tensor) -> None:
    """Check that the outputs of a batch are those of its rows in two halves of it, and of one row alone.

    Raises:
        VerificationError: outputs of a row that depend on the other rows of its batch.
    """
    n = len(outputs)
    rows = Rows(batch, n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n)).to(outputs.device)
    parts = [part for part in (order[: n // 2], order[n // 2 :], order[:1]) if 0 < len(part) < n]
    tolerance = prepared.tolerance(1e-3, 1e-8)
    expected = outputs.detach()
    finite = expected.masked_fill(expected.isinf(), 0.0)  # outputs that a mask excludes are infinite in both
    scale = float(finite.abs().max().clamp_min(torch.finfo(expected.dtype).tiny))
    for part in parts:
        try:
            with torch.no_grad():
                outputs = prepared.outputs(rows.take(part), len(part))
                difference = (outputs - expected[part]).masked_fill(outputs == expected[part], 0.0)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise VerificationError(
                f"a model that accepts a batch of {n} rows but not {len(part)} of them ({error})",
                expected="an output for each row that depends on that row alone",
                hint="call model.eval(), and remove operations that need several rows (batch statistics)",
            ) from error
        relative_error = float(difference.abs().max()) / scale
        if not relative_error <= tolerance:
            row = int(part[difference.abs().amax(1).argmax()])
            raise VerificationError(
                f"a model whose outputs for row {row} of a batch of {n} rows depend on the other rows (they differ by"
                f" {relative_error:.2g} in a batch of {len(part)} rows, relative to the largest output)",
                expected="an output for each row that depends on that row alone",
                hint="call model.eval(), and remove what mixes the rows of a batch (batch statistics, attention over rows,"
                " capacity limits of experts)",
            )
