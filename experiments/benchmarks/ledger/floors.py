"""The least operations of a step's analysis by the two ways that the ledger has, and of a step of training."""

from itertools import pairwise

from experiments.benchmarks.ledger.workloads import Workload

__all__ = ["carried_numbers", "ledger_operations", "training_operations"]

CARRYING = ("momentum", "momentum-decay", "adam", "adamw")


def ledger_operations(workload: Workload, *, outputs: int, nodes: float) -> float:
    """Floating-point operations (two for a multiply-add) of one step.

    m rows, k outputs, q nodes, batches of B, layers of a inputs and g outputs. Both ways: outputs at one end of the step,
    m passes; outputs at the nodes, m·q; k sweeps back from them, m·q·k; passes and one sweep back of the batch. Then

    - plain gradient descent: products of factors, m·q·B·(a + k·g) for each layer;
    - otherwise: mean tangents, m·k·q·a·g, and the product that meets all gradients, m·k·B·a·g.
    """
    m, k, q, B = workload.tests, outputs, nodes, workload.batch
    forward, back = _passes(workload)
    total = m * forward + m * q * (forward + k * back) + B * (forward + back)
    for a, g in pairwise(workload.sizes):
        carried = m * k * (q + B) * (a + 1) * g
        crossed = m * q * B * (a + 1 + k * g)
        total += carried if workload.optimizer in CARRYING else crossed
    return 2.0 * total


def carried_numbers(workload: Workload, *, outputs: int) -> int:
    """What is handed on from step to step: one number for each row, output and parameter."""
    if workload.optimizer not in CARRYING:
        return 0
    return workload.tests * outputs * sum((a + 1) * g for a, g in pairwise(workload.sizes))


def training_operations(workload: Workload) -> float:
    """Forward, back, and the gradients of the weights."""
    forward, back = _passes(workload)
    return 2.0 * workload.batch * (2 * forward + back)


def _passes(workload: Workload) -> tuple[int, int]:
    """Multiply-adds of one row's outputs, and of one sweep back to the first layer's outputs."""
    products = [a * g for a, g in pairwise(workload.sizes)]
    return sum(products), sum(products[1:])
