"""Nulls of an account: bits that the same function credits to networks that cannot have memorized these labels."""

from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from kernelmem.compression.accounting.calibration import LeftOutBits
from kernelmem.compression.accounting.network import Network
from kernelmem.compression.accounting.network_bits import bits_given
from kernelmem.compression.accounting.reinitialize import Reinitialized
from kernelmem.core.checks import check_callable, check_instance, seed_sequence
from kernelmem.core.errors import InputError, NumericalError
from kernelmem.core.models.random_states import random_states
from kernelmem.label_noise import corrupt_labels

Retrain: TypeAlias = Callable[[Tensor, int], nn.Module] | Callable[[Tensor, Tensor, int], nn.Module]
"""Type of ``retrain=``: train(indices, seed) -> model, or train(indices, labels, seed) -> model for labels that are drawn."""

UNTRAINED, UNSEEN, REDRAWN = (
    "untrained network",
    "network that did not see the row",
    "network trained on re-drawn labels",
)


def takes_labels(retrain: object) -> bool:
    """Return True for a function train(indices, labels, seed), False for train(indices, seed).

    Raises:
        InputError: neither.
    """
    try:
        check_callable(retrain, "retrain", ("indices", "seed"))
        return False
    except InputError as error:
        try:
            check_callable(retrain, "retrain", ("indices", "labels", "seed"))
            return True
        except InputError:
            raise error from None


def measure_nulls(
    network: Network,
    labels: Tensor,
    left_out: LeftOutBits,
    *,
    untrained: Reinitialized,
    retrain: Retrain | None,
    suggest: Callable[[Tensor], Tensor],
    seed: int,
) -> dict[str, float]:
    """Return left-out bits minus network bits, by name of the null.

    Always of the re-initialized network, unless its outputs are not finite. With ``retrain`` of two networks, each trained
    on one half of the rows, on the half that they did not see. If ``retrain`` takes labels, also of two networks, each trained
    on one half of the rows, on this half, but with other labels: those that ``suggest(rows)`` returns, which does not use
    any label of these rows, with flips at the estimated rate.
    """

    def memorized(logits: Tensor) -> float:
        return left_out.total - bits_given(logits, labels, left_out)[0]

    nulls = {}
    with suppress(InputError, NumericalError):  # not finite: running statistics of BatchNorm that are reset may not fit
        nulls[UNTRAINED] = memorized(network.outputs_of(untrained.module, name="the re-initialized model"))
    if retrain is None:
        return nulls
    n, C = network.logits.shape
    with_labels = takes_labels(retrain)
    seeds = seed_sequence(seed, ["split", "first", "second", "flips"])
    order = torch.from_numpy(np.random.default_rng(seeds["split"]).permutation(n))
    halves = {"first": order[: n // 2].sort().values, "second": order[n // 2 :].sort().values}
    unseen = torch.empty_like(network.logits)
    for (name, rows), others in zip(halves.items(), reversed(halves.values()), strict=True):
        arguments = (rows, labels[rows]) if with_labels else (rows,)
        unseen[others] = _outputs(network, retrain, arguments, seeds[name])[others]
    nulls[UNSEEN] = memorized(unseen)
    if with_labels:
        redrawn = torch.empty_like(network.logits)
        matrix = torch.full((C, C), left_out.noise_rate / (C - 1), dtype=torch.float64)
        matrix.fill_diagonal_(1 - left_out.noise_rate)
        for name, rows in halves.items():
            drawn = corrupt_labels(suggest(rows), None, "matrix", matrix=matrix, seed=seeds["flips"]).y
            redrawn[rows] = _outputs(network, retrain, (rows, drawn), seeds[name])[rows]
        nulls[REDRAWN] = memorized(redrawn)
    return nulls


def _outputs(network: Network, retrain: Retrain, arguments: tuple[Tensor, ...], seed: int) -> Tensor:
    """Return the outputs (n, C) of a newly trained network on all rows."""
    with random_states(seed):
        model = retrain(*arguments, seed)  # pyright: ignore[reportCallIssue]
    check_instance(model, "result of retrain", nn.Module, hint="return the trained module")
    outputs = network.outputs_of(model, name="the retrained model")
    if outputs.shape != network.logits.shape:
        raise InputError(
            f"a retrained model with {outputs.shape[1]} outputs",
            expected=f"{network.logits.shape[1]} outputs, as the model has",
            hint="build the same network in retrain",
        )
    return outputs
