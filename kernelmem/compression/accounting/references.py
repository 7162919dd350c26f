"""References: label-free kernels, or held-out probabilities, by which labels are predicted without the network."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kernelmem.compression.accounting.network import Network, trainable_copy
from kernelmem.compression.accounting.reinitialize import Reinitialized
from kernelmem.core.batches import Rows
from kernelmem.core.checks import ArrayLike, as_square_kernel, as_tensor, describe
from kernelmem.core.errors import InputError, UnsupportedModelError, VerificationError
from kernelmem.kernels import KernelStore, infinite_ntk

if TYPE_CHECKING:
    from typing import TypeAlias

ReferenceLike: "TypeAlias" = str | nn.Module | ArrayLike | None
"""Type of ``reference=``: a name, a network, a kernel (n, n), held-out probabilities (n, C), or None."""

NAMES = ("initial_ntk", "infinite_ntk", "rbf")
DEPTH = 2  # hidden layers of the infinitely wide network
MAX_OPERATIONS = 2e13  # of the NTK of the re-initialized network; above it None is the NTK of infinite width
N_COMPARED = 24  # rows on which a kernel is compared with the NTK of the trained network
TOLERANCE = 1e-3
LEARNED = "whose kernel has learned these labels, so that its predictions without a row are not without the label"


@dataclass(frozen=True)
class Reference:
    """Prediction of labels without the network: by a kernel (n, n), maybe in a file, or by given probabilities (n, C)."""

    name: str
    kernel: Tensor | KernelStore | None = None
    probabilities: Tensor | None = None


def as_reference(reference: ReferenceLike, network: Network, untrained: Reinitialized) -> Reference:
    """Return the reference of an account.

    Raises:
        InputError: an unknown name, a kernel or probabilities that do not fit, or the NTK or the outputs of the trained
            network itself.
    """
    if reference is None:
        return _default(network, untrained)
    if isinstance(reference, str):
        return _named(reference, network, untrained)
    if isinstance(reference, nn.Module):
        kernel = network.kernel_of_rows(trainable_copy(reference), network.rows)
        if not _differs_in_a_fixed_kernel(reference, network, untrained):
            _refuse_trained_kernel(kernel, "reference, a network", network, untrained)
        return Reference("NTK of the given network", kernel=kernel)
    return _array(reference, network, untrained)


def _default(network: Network, untrained: Reinitialized) -> Reference:
    """Return the NTK of the re-initialized network, or that of infinite width where it is too expensive or unsupported."""
    try:
        if network.kernel_operations(untrained.module) <= MAX_OPERATIONS:
            return _named("initial_ntk", network, untrained)
        reason = "the NTK of the re-initialized network would take too long"
    except (UnsupportedModelError, VerificationError):
        reason = "the model has no NTK"
    if network.folder is not None:
        raise InputError(
            f"{network.rows.n:,} rows whose kernel exceeds the memory, where {reason}",
            expected="an NTK that can be computed into a file",
            hint="pass more memory, or a random part of the rows",
        )
    reference = _named("infinite_ntk", network, untrained)
    return Reference(f"{reference.name} ({reason})", kernel=reference.kernel)


def _named(name: str, network: Network, untrained: Reinitialized) -> Reference:
    if name == "initial_ntk":
        return Reference("NTK of the re-initialized network", kernel=network.tangent_kernel(untrained.module))
    if name == "infinite_ntk":
        kernel = infinite_ntk(network.rows.flat(), depth=DEPTH)
        return Reference(f"NTK of an infinitely wide network with {DEPTH} hidden layers", kernel=kernel)
    if name == "rbf":
        return Reference("Gaussian kernel of median width", kernel=_gaussian_kernel(network.rows.flat()))
    trained = name in ("ntk", "final_ntk", "trained_ntk")
    raise InputError(
        f"reference={describe(name)}" + f", the NTK of the trained network, {LEARNED}" * trained,
        expected=", ".join(f'"{choice}"' for choice in NAMES) + ", a network, a kernel (n, n), or probabilities (n, C)",
        hint="omit reference; trained_kernel=True counts the bits that training moved into the kernel"
        if trained
        else 'pass reference="infinite_ntk"',
    )


def _array(value: ArrayLike, network: Network, untrained: Reinitialized) -> Reference:
    """Read a kernel (n, n) or probabilities (n, C)."""
    array = as_tensor(value, "reference", dtype=torch.float64).cpu()
    n, C = network.logits.shape
    if array.shape == (n, n):
        kernel = as_square_kernel(array, "reference")
        if float(kernel.diagonal().mean()) <= 0:
            raise InputError(
                f"reference of shape ({n}, {n}) with mean diagonal {float(kernel.diagonal().mean()):.3g}",
                expected="a positive semidefinite kernel that is not zero",
                hint="pass the kernel of the rows with themselves",
            )
        _refuse_trained_kernel(kernel, "reference, a kernel", network, untrained)
        return Reference("given kernel", kernel=kernel)
    if array.shape != (n, C):
        raise InputError(
            f"reference of shape {tuple(array.shape)}",
            expected=f"a kernel ({n}, {n}) of the rows, or probabilities ({n}, {C}) of models that did not see the row",
            hint='pass reference="infinite_ntk", or None',
        )
    if float(array.min()) < 0 or float((array.sum(1) - 1).abs().max()) > 1e-4:
        raise InputError(
            f"reference of shape ({n}, {C}) with values from {float(array.min()):.3g} to {float(array.max()):.3g}",
            expected="probabilities: non-negative rows that sum to 1",
            hint="pass the softmax of logits of models that did not see the row",
        )
    if float((array - network.logits.softmax(1)).abs().max()) < TOLERANCE:
        raise InputError(
            f"reference of shape ({n}, {C}) that equals the softmax of the network's own outputs",
            expected="probabilities of models that were not trained on the row",
            hint="pass predictions of cross-validation, or omit reference",
        )
    return Reference("given held-out probabilities", probabilities=array)


def _differs_in_a_fixed_kernel(reference: nn.Module, network: Network, untrained: Reinitialized) -> bool:
    """Return whether a network has other trained weights than ``network``, and the NTK does not depend on those.

    So it is with a linear layer on frozen features: the network before training has the same kernel.
    """
    given, trained = dict(reference.named_parameters()), dict(network.module.named_parameters())
    free = [name for name, parameter in trained.items() if parameter.requires_grad]
    if len(free) == len(trained) or given.keys() != trained.keys():
        return False
    if all(torch.equal(given[name].detach().cpu(), trained[name].detach().cpu()) for name in free):
        return False
    redrawn = trainable_copy(network.module)
    with torch.no_grad():
        for name, parameter in redrawn.named_parameters():
            if name in free:
                parameter.copy_(untrained.module.get_parameter(name))
    return _distance(network, network.module, redrawn) <= TOLERANCE


def _refuse_trained_kernel(kernel: Tensor, name: str, network: Network, untrained: Reinitialized) -> None:
    """Raise an InputError if the kernel is a multiple of the NTK of the trained network, unless that has not moved."""
    some, rows = _some_rows(network)
    try:
        trained = _normalized(network.kernel_of_rows(network.module, rows))
        if float(torch.linalg.norm(_normalized(kernel[some][:, some]) - trained)) > TOLERANCE:
            return
        moved = _distance(network, network.module, untrained.module) > TOLERANCE
    except (UnsupportedModelError, VerificationError):  # then the kernel is not the NTK of this network
        return
    if moved:
        raise InputError(
            f"{name}, that is the NTK of the trained network, {LEARNED}",
            expected="a kernel that does not depend on the labels",
            hint="pass None, or the network before training; trained_kernel=True counts the bits that training moved into"
            " the kernel",
        )


def _some_rows(network: Network) -> tuple[Tensor, Rows]:
    """Return the indices of a few rows, and those rows."""
    n = network.rows.n
    some = torch.linspace(0, n - 1, min(n, N_COMPARED)).round().long().unique()
    return some, Rows(network.rows.take(some), len(some))


def _distance(network: Network, first: nn.Module, second: nn.Module) -> float:
    """Return the distance of the normalized NTKs of two networks on a few rows."""
    rows = _some_rows(network)[1]
    kernels = [_normalized(network.kernel_of_rows(module, rows)) for module in (first, second)]
    return float(torch.linalg.norm(kernels[0] - kernels[1]))


def _gaussian_kernel(x: Tensor) -> Tensor:
    """Return exp(−d² / (2 median d²)) of rows x (n, d), with the mean of d² if the median is 0."""
    squared = torch.cdist(x, x).square()
    off_diagonal = squared[~torch.eye(len(x), dtype=torch.bool)]
    width = float(off_diagonal.median()) or float(off_diagonal.mean()) or 1.0
    return torch.exp(-(squared + squared.T) / (4 * width))


def _normalized(kernel: Tensor) -> Tensor:
    return kernel / torch.linalg.norm(kernel).clamp_min(torch.finfo(torch.float64).tiny)
