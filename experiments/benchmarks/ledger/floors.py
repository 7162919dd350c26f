"""The least operations of a step's analysis by the ways that the ledger has, and of a step of training."""

from itertools import pairwise

from experiments.benchmarks.ledger.workloads import Workload

__all__ = ["carried_numbers", "ledger_operations", "training_operations"]

MOMENTUM = ("momentum", "momentum-decay")
ADAPTIVE = ("adam", "adamw")


def ledger_operations(workload: Workload, *, outputs: int, nodes: float) -> float:
    """Floating-point operations (two for a multiply-add) of one step.

    m rows, k outputs, q nodes, batches of B, layers of a inputs and g outputs. Always: outputs at one end of the step,
    m passes; outputs at the nodes, m·q; k sweeps back from them, m·q·k; passes and one sweep back of the batch. Then, for
    each layer,

    - plain gradient descent: products of factors, m·q·B·(a + k·g);
    - Adam: mean tangents, m·k·q·a·g, and the product that meets all gradients, m·k·B·a·g;
    - momentum: the same, or products with the factors of later steps if that is less: m·Q·B·(a + k·g) for Q nodes, and
      m·Q·(a + k)·g for weight decay. Q is 1 in the first layer, whose inputs never change, else that of half the steps.
    """
    m, k, q, B = workload.tests, outputs, nodes, workload.batch
    forward, back = _passes(workload)
    total = m * forward + m * q * (forward + k * back) + B * (forward + back)
    if workload.optimizer in MOMENTUM + ADAPTIVE:
        total += sum(operations for operations, _ in _carried(workload, k, q))
    else:
        total += sum(m * q * B * (a + 1 + k * g) for a, g in pairwise(workload.sizes))
    return 2.0 * total


def carried_numbers(workload: Workload, *, outputs: int, nodes: float) -> float:
    """What is read in every step of what later steps left: entries of a dense adjoint, or of its factors."""
    if workload.optimizer not in MOMENTUM + ADAPTIVE:
        return 0.0
    return sum(numbers for _, numbers in _carried(workload, outputs, nodes))


def _carried(workload: Workload, outputs: int, nodes: float) -> list[tuple[float, float]]:
    """Multiply-adds and numbers of each layer's adjoint momentum, in the form that takes fewer operations."""
    m, k, q, B = workload.tests, outputs, nodes, workload.batch
    layers = []
    for index, (a, g) in enumerate(pairwise(workload.sizes)):
        choices = [(m * k * (q + B) * (a + 1) * g, float(m * k * (a + 1) * g))]
        if workload.optimizer in MOMENTUM:
            held = q * (workload.steps + 1) / 2 if index else 1.0
            factored = m * held * B * (a + 1 + k * g)
            if workload.optimizer == "momentum-decay":
                factored += m * held * (a + 1 + k) * g
            choices.append((factored, m * held * (a + 1 + k * g)))
        layers.append(min(choices))
    return layers


def training_operations(workload: Workload) -> float:
    """Forward, back, and the gradients of the weights."""
    forward, back = _passes(workload)
    return 2.0 * workload.batch * (2 * forward + back)


def _passes(workload: Workload) -> tuple[int, int]:
    """Multiply-adds of one row's outputs, and of one sweep back to the first layer's outputs."""
    products = [a * g for a, g in pairwise(workload.sizes)]
    return sum(products), sum(products[1:])
