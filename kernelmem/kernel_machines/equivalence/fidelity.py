"""Fidelity of a surrogate to a network: agreement and relative error of their outputs on held-out rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_labels, as_tensor, check_kernel_range
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.training.losses import class_outputs


@dataclass(frozen=True, eq=False, repr=False)
class Fidelity(Result):
    """Agreement of two sets of outputs on the same rows.

    Attributes:
        agreement: share of rows with the same argmax.
        agreement_se: binomial standard error by the (k + 1)/(n + 2) rule, which is not 0 at agreement 1.
        relative_error: |surrogate − network| / |network| in the Frobenius norm, after centering over outputs.
        n: number of rows compared.
    """

    agreement: float
    agreement_se: float
    relative_error: float
    n: int

    def __str__(self) -> str:
        return (
            f"agreement of the argmax {self.agreement:.4f} ± {self.agreement_se:.4f}, relative error"
            f" {self.relative_error:.3g}, on {self.n:,} rows"
        )


def fidelity(surrogate: ArrayLike, network: ArrayLike) -> Fidelity:
    """Compare the outputs of a surrogate model (a kernel machine) with those of a network, both (m, C) on the same rows.

    agreement = mean 1[argmax surrogate = argmax network]; relative error = |c(surrogate) − c(network)| / |c(network)| in
    the Frobenius norm, where c subtracts each row's mean over outputs (a constant added to all logits of a row changes
    neither the prediction nor the softmax). One output z counts as the two outputs [0, z] of a binary classifier.

    Raises:
        InputError: the shapes differ, there are no rows, or there is NaN.

    >>> import torch
    >>> fidelity(torch.eye(3), torch.eye(3)).agreement
    1.0
    """
    surrogate_outputs = as_tensor(surrogate, "surrogate", dtype=torch.float64)
    network_outputs = as_tensor(network, "network", dtype=torch.float64).to(surrogate_outputs.device)
    if (
        surrogate_outputs.shape != network_outputs.shape
        or surrogate_outputs.ndim != 2
        or surrogate_outputs.numel() == 0
    ):
        raise InputError(
            f"surrogate of shape {tuple(surrogate_outputs.shape)}, network of shape {tuple(network_outputs.shape)}",
            expected="the same shape (m, C), m >= 1 and C >= 1",
            hint="compute both outputs on the same rows",
        )
    for name, outputs in (("surrogate", surrogate_outputs), ("network", network_outputs)):
        check_kernel_range(float(outputs.abs().max()), name)
    surrogate_outputs, network_outputs = class_outputs(surrogate_outputs), class_outputs(network_outputs)
    n_same = int((surrogate_outputs.argmax(1) == network_outputs.argmax(1)).sum())
    n = len(surrogate_outputs)
    smoothed_agreement = (n_same + 1) / (n + 2)
    error_norm = float((centered(surrogate_outputs) - centered(network_outputs)).norm())
    network_norm = float(centered(network_outputs).norm())
    return Fidelity(
        n_same / n,
        (smoothed_agreement * (1 - smoothed_agreement) / n) ** 0.5,
        error_norm / network_norm if network_norm else float("inf"),
        n,
    )


def centered(outputs: Tensor) -> Tensor:
    """Return ``outputs`` (n, C) after subtracting from each row its mean over the C outputs.

    Raises:
        InputError: the outputs are not (n, C), C >= 1, or not finite.
    """
    outputs = _check_outputs(outputs)
    return outputs - outputs.mean(1, keepdim=True)


def margin(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the margins (n,): the output of the given label minus the largest output of another class.

    ``outputs`` is (n, C), C >= 2, and ``labels`` (n,) holds class indices.

    Raises:
        InputError: the outputs are not (n, C) or not finite, there is one output, or labels are not 0..C-1.

    >>> import torch
    >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([1]))
    tensor([-2.])
    """
    outputs = _check_outputs(outputs, n_classes=2)
    label_column = as_labels(labels, "labels", n=len(outputs), n_classes=outputs.shape[1]).unsqueeze(1)
    largest_other = outputs.scatter(1, label_column, float("-inf")).amax(1)
    return outputs.gather(1, label_column).squeeze(1) - largest_other


def _check_outputs(outputs: Tensor, n_classes: int = 1) -> Tensor:
    """Return outputs (n, C) of at least ``n_classes`` classes, in floating point.

    Raises:
        InputError: another shape, complex numbers, NaN or infinite values.
    """
    outputs = as_tensor(outputs, "outputs")
    if outputs.ndim != 2 or outputs.shape[1] < n_classes:
        raise InputError(
            f"outputs of shape {tuple(outputs.shape)}",
            expected=f"(n, C) with C >= {n_classes}",
            hint="pass one row of outputs per example, as the model returns them",
        )
    return outputs if outputs.is_floating_point() else outputs.to(torch.get_default_dtype())
