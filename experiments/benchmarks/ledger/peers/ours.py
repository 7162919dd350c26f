"""kernelmem's ledger, by example and by group."""

import torch
from torch import Tensor, nn

from experiments.benchmarks.ledger.peers.interface import Account, Engine
from experiments.benchmarks.ledger.workloads import Problem
from kernelmem.trajectory import Ledger, LedgerOptions, ledger

__all__ = ["prepare", "prepare_groups"]


def prepare(problem: Problem, *, tolerance: float = 1e-12, log_probabilities: bool = False) -> Engine:
    """Every example."""
    model, x = problem.workload.model(), problem.x
    forward = _log_probabilities if log_probabilities else None

    def analyze(rows: int = len(x)) -> Account:
        own = ledger(problem.run, model, x[:rows], forward=forward, options=LedgerOptions(tolerance=tolerance))
        return _account(own, log_probabilities)

    return Engine(analyze, lambda: analyze(1))


def prepare_groups(problem: Problem) -> Engine:
    """Ten classes of clean examples, and the flipped ones."""
    model, x = problem.workload.model(), problem.x
    _, y, flipped = problem.data
    groups = torch.where(flipped, problem.workload.sizes[-1], y)

    def analyze(rows: int = len(x)) -> Account:
        return _account(ledger(problem.run, model, x[:rows], by=groups))

    return Engine(analyze, lambda: analyze(1))


def _log_probabilities(model: nn.Module, rows: Tensor) -> Tensor:
    return model(rows).log_softmax(1)


def _account(own: Ledger, log_probabilities: bool = False) -> Account:
    return Account(
        own.contributions,
        own.decay + own.rounding + own.buffers,
        stop=len(own.evaluations),
        log_probabilities=log_probabilities,
        evaluations=float(own.evaluations.mean()),
        rounding=float(own.rounding.abs().max()),
    )
