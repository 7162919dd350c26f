"""Captured pass of a network, with the weights of blocks and the rows of every use located."""

from collections.abc import Mapping, Sequence

from torch import nn

from kernelmem.core.batches import Rows
from kernelmem.tangents.capture import Capture, Decomposition, OperationRecorder, Rule, UseKey, capture
from kernelmem.tangents.prepare import PreparedModel
from kernelmem.tangents.rules import RULES
from kernelmem.tangents.survey import PassMismatchError, Survey, locate_uses
from kernelmem.trajectory.network.weight_blocks import BlockRecorder, Blocks


def capture_pass(
    prepared: PreparedModel, survey: Survey, rows: Rows, blocks: Blocks | None, shared_tensor_ids: frozenset[int]
) -> Capture:
    """Run one forward pass, capture every use of the parameters, and locate the rows of each use.

    With ``blocks`` each block of rows has its own weights; ``shared_tensor_ids`` are the tensors that all blocks share.

    Raises:
        PassMismatchError: uses that the survey did not see, or whose rows cannot be located.
    """

    def recorder(
        parameters: Mapping[str, nn.Parameter],
        rules: Sequence[Rule | Decomposition],
        skip: frozenset[UseKey],
        dense: frozenset[str],
    ) -> OperationRecorder:
        if blocks is None:
            return OperationRecorder(parameters, rules, skip, dense)
        return BlockRecorder(blocks, survey.batch_axes, shared_tensor_ids, parameters, rules, skip, dense)

    captured = capture(
        prepared,
        rows.slice(0, rows.n),
        rows.n,
        RULES,
        skip=survey.skip,
        dense=survey.dense,
        batch_axes=survey.batch_axes,
        recorder=recorder,
    )
    unlocated = locate_uses(captured, [use for use in captured.uses if not use.located])
    names = set().union(captured.uncovered, *(use.parameters for use in captured.uses if use.key in unlocated))
    if names:
        raise PassMismatchError(frozenset(names))
    return captured
