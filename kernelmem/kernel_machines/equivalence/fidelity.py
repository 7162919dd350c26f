"""How well a kernel machine stands for a network: agreement and relative error on rows that neither was fitted to."""

from dataclasses import dataclass

from torch import Tensor

from kernelmem.core.errors import InputError

__all__ = ["Fidelity", "centered", "fidelity", "margin"]


@dataclass(frozen=True)
class Fidelity:
    """Agreement of two sets of outputs on the same rows."""

    agreement: float  # share of rows with the same argmax
    agreement_se: float  # binomial standard error, (k + 1)/(n + 2) rule so that it is not 0 at agreement 1
    relative_error: float  # |machine - network|_F / |network|_F after centering over outputs
    n: int


def fidelity(machine: Tensor, network: Tensor) -> Fidelity:
    """Compare a machine's outputs with the network's: both (m, C).

    agreement = mean 1[argmax machine = argmax network]; relative error = |c(machine) − c(network)| / |c(network)| in
    the Frobenius norm, where c subtracts each row's mean over outputs (a constant added to all logits of a row changes
    no prediction and no softmax).

    Raises:
        InputError: shapes that differ, no rows.

    >>> import torch
    >>> fidelity(torch.eye(3), torch.eye(3)).agreement
    1.0
    """
    if machine.shape != network.shape or machine.ndim != 2 or len(machine) == 0:
        raise InputError(
            f"outputs of shape {tuple(machine.shape)} and {tuple(network.shape)}",
            expected="the same shape (m, C), m >= 1",
            hint="predict with both on the same rows",
        )
    same = int((machine.argmax(1) == network.argmax(1)).sum())
    n = len(machine)
    smoothed = (same + 1) / (n + 2)
    gap = float((centered(machine) - centered(network)).norm())
    size = float(centered(network).norm())
    return Fidelity(same / n, (smoothed * (1 - smoothed) / n) ** 0.5, gap / size if size else float("inf"), n)


def centered(outputs: Tensor) -> Tensor:
    """Outputs minus their mean over the C outputs of each row: (n, C)."""
    return outputs - outputs.mean(1, keepdim=True)


def margin(outputs: Tensor, labels: Tensor) -> Tensor:
    """Margin of the given label, f_y − max_{k≠y} f_k: (n, C), (n,) -> (n,).

    >>> import torch
    >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([1]))
    tensor([-2.])
    """
    column = labels.unsqueeze(1)
    others = outputs.scatter(1, column, float("-inf")).amax(1)
    return outputs.gather(1, column).squeeze(1) - others
