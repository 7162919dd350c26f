"""km.account: bits of the labels of a trained network."""

import math
import tempfile
from bisect import bisect_right
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kernelmem.compression.accounting.calibration import LeftOutBits, left_out_bits
from kernelmem.compression.accounting.network import Network, read_network, trainable_copy
from kernelmem.compression.accounting.network_bits import bits_given
from kernelmem.compression.accounting.nulls import Retrain, measure_nulls, takes_labels
from kernelmem.compression.accounting.references import Reference, ReferenceLike, as_reference
from kernelmem.compression.accounting.reinitialize import Reinitialized, reinitialize
from kernelmem.compression.accounting.result import Account
from kernelmem.compression.online import OnlineOptions, online_code
from kernelmem.compression.online.sources import kernel_code_bytes
from kernelmem.core.batches import Batch, Forward, as_labeled_rows
from kernelmem.core.checks import ArrayLike, as_flag, as_labels, as_seed, check_model, seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.core.models.torch_func import standard_modes
from kernelmem.core.options import MEMORY, Progress, as_bytes, as_progress
from kernelmem.kernel_machines import choose_ridge, leave_one_out

LabeledRows: TypeAlias = tuple[Batch, ArrayLike] | Dataset[Any] | DataLoader[Any]
"""Type of ``data=``: (x, y), or a Dataset or DataLoader of pairs (input, label)."""

N_RIDGES = 19  # half a decade apart, from 1e-6 to 1e3 times the mean diagonal
N_STAGES = 4  # reference, left-out predictions, online code, nulls
MATRICES = 5  # n x n in float64, at the same time, without files
STREAMED_COLUMNS = 4096  # of n numbers, besides one matrix, with files


@standard_modes()
def account(
    model: nn.Module,
    data: LabeledRows,
    *,
    reference: ReferenceLike = None,
    retrain: Retrain | None = None,
    trained_kernel: bool = False,
    forward: Forward | None = None,
    seed: int = 0,
    memory: int | str = MEMORY,
    progress: Progress = None,
) -> Account:
    """Account for the labels of a trained classifier in bits: learnable, memorized, noise, unexplained.

    ::

        uniform = (uniform − left_out) + (left_out − network) + network
                   from the other rows    memorized              in neither

    left_out are the bits of the labels by leave-one-out predictions of kernel ridge regression with a kernel that has not
    learned them, calibrated by a temperature and a noise rate. network are the bits once the network is known: a mixture of
    its softmax at several temperatures, with the uniform or the left-out prediction for a floor, and of the left-out
    prediction alone, at most 1 bit above left_out. So what a network that never saw the labels memorized reads −1; it is
    computed along with every account, as a null.

    Both are estimates. online is a code: what a decoder needs that has inputs and reference, but no network.

    The noise rate assumes that all wrong labels are equally likely. For other noise, see km.estimate_label_noise.

    Args:
        model: trained classifier; ``model(x)`` are logits (n, C), or one logit of two classes. A copy in eval mode is used.
        data: (x, y): n rows as the model takes them, and their labels, class indices (n,); or a Dataset or DataLoader of
            pairs (input, label), without shuffling.
        reference: the prediction without the network. None: the NTK of the re-initialized network, or "infinite_ntk" if
            that would take more than 2e13 operations or the model has no NTK; the result names it. "initial_ntk",
            "infinite_ntk" (relu, 2 hidden layers, on flattened rows), "rbf" (on flattened rows); a network; a kernel
            (n, n); or probabilities (n, C) of models that were not trained on the row, which cannot be checked. A better
            reference makes the memorized bits fewer. For a network with pretrained parts pass the network before training:
            the re-initialized one has forgotten those.
        retrain: train(indices, seed) -> model, trained on the rows ``indices``, for the null of networks that did not see
            the row; or train(indices, labels, seed) -> model, for that of networks trained on other labels, too.
        trained_kernel: True to count the bits that training moved into the kernel.
        forward: maps (model, batch) to (n, C), for models with other inputs or outputs.
        seed: of the re-initialized network, of the order of rows in the online code, and of ``retrain``.
        memory: memory for kernels, in bytes or as text such as "4GiB".
        progress: called with (stages done, all stages); True for a bar, False for none.

    Returns:
        Account: the bits, the nulls, and the bits of each row.

    Raises:
        InputError: outputs that are probabilities; labels that do not fit, or of one class only; a reference that is the NTK
            or the output of the trained network: it has learned the labels, so that its prediction without a row is not
            without the label.
        UnsupportedModelError: outputs that are not (n, C).
        NumericalError: a kernel that is not positive semidefinite.

    Cost: the kernel, one eigendecomposition and a few Cholesky factorizations of it; 40 n² bytes, or with less ``memory`` 8 n²
    bytes and 8 n² (12 n² with ``trained_kernel``) in a temporary directory. With ``retrain`` two or four trainings on half of
    the rows.

    Source: temperature: Guo et al. 2017; leave-one-out: Allen 1974; the split of the bits: derived here.

    >>> from kernelmem.training import train_classifier
    >>> x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    >>> model, y = nn.Sequential(nn.Linear(5, 2)), (x[:, 0] > 0).long()
    >>> _ = train_classifier(model, x, y, lr=0.01, seed=0)
    >>> result = account(model, (x, y))
    >>> result.uniform, result.memorized < 30
    (60.0, True)
    """
    check_model(model)
    x, y = as_labeled_rows(data, "data")
    trained_kernel = as_flag(trained_kernel, "trained_kernel")
    if retrain is not None:
        takes_labels(retrain)
    seed = as_seed(seed)
    report_stage = as_progress(progress, "account", "stage")
    network = read_network(model, x, forward, memory)
    n, C = network.logits.shape
    labels = _check_labels(y, n, C)
    streamed = _exceeds_memory(n, C, as_bytes(memory), reference)
    with tempfile.TemporaryDirectory() if streamed else nullcontext() as folder:
        network = replace(network, folder=None if folder is None else Path(folder))
        return _account_of(
            network,
            labels,
            reference=reference,
            retrain=retrain,
            trained_kernel=trained_kernel,
            seed=seed,
            report_stage=report_stage,
        )


def _account_of(
    network: Network,
    labels: Tensor,
    *,
    reference: ReferenceLike,
    retrain: Retrain | None,
    trained_kernel: bool,
    seed: int,
    report_stage: Callable[[int, int], object],
) -> Account:
    """Return the account of checked inputs."""
    n, C = network.logits.shape
    memory = network.memory
    seeds = seed_sequence(seed, ["initialization", "order", "nulls"])
    untrained = reinitialize(network.module, seeds["initialization"])
    used = as_reference(reference, network, untrained)
    report_stage(1, N_STAGES)

    left_out, suggest = _left_out(used, labels, C, memory)
    predicted, uniform = left_out.probabilities.argmax(1), n * math.log2(C)
    estimable = left_out.total < uniform
    if not estimable:
        equal = torch.full_like(left_out.probabilities, 1 / C)
        rows = torch.full_like(left_out.rows, math.log2(C))
        left_out = replace(left_out, probabilities=equal, rows=rows, price=0.0, n_choices=1)
    bits, network_rows = bits_given(network.logits, labels, left_out)
    report_stage(2, N_STAGES)
    online = moved = None
    if used.kernel is not None:
        online = online_code(used.kernel, labels, n_classes=C, order_seed=seed, memory=memory, progress=False).bits
        if trained_kernel:
            trained = network.tangent_kernel(network.module)
            moved = (
                online - online_code(trained, labels, n_classes=C, order_seed=seed, memory=memory, progress=False).bits
            )
    report_stage(3, N_STAGES)
    if isinstance(reference, nn.Module):
        untrained = Reinitialized(trainable_copy(reference), "the given network")
    nulls = measure_nulls(
        network, labels, left_out, untrained=untrained, retrain=retrain, suggest=suggest, seed=seeds["nulls"]
    )
    report_stage(N_STAGES, N_STAGES)
    return Account(
        labels=labels,
        predicted=predicted,
        uniform=uniform,
        online=None if online is None else float(online),
        left_out=left_out.total if estimable else None,
        network=bits,
        noise_rate=left_out.noise_rate if estimable else None,
        noise_rate_error=left_out.noise_rate_error if estimable else None,
        left_out_rows=left_out.rows,
        network_rows=network_rows,
        nulls=nulls,
        reference=used.name,
        initialization=untrained.note,
        moved_into_kernel=None if moved is None else float(moved),
        estimable=estimable,
        n_classes=C,
    )


def _check_labels(y: ArrayLike, n: int, C: int) -> Tensor:
    """Return labels (n,) int64 on the CPU.

    Raises:
        InputError: labels that do not fit n rows and C outputs, or labels of one class.
    """
    labels = as_labels(y, "y", n=n, n_classes=C).cpu()
    if len(labels.unique()) < 2:
        raise InputError(
            f"y with {n} labels of one class",
            expected="labels of at least two classes",
            hint="labels that are all equal hold no bits; pass rows of several classes",
        )
    return labels.clone()


def _exceeds_memory(n: int, C: int, memory: int, reference: ReferenceLike) -> bool:
    """Return whether the kernels of n rows must be in files.

    Raises:
        InputError: they do not fit in memory either way.
    """
    has_file = reference is None or (isinstance(reference, str) and reference == "initial_ntk")

    def needed(rows: int) -> int:
        in_memory = needed_bytes(rows, C, streamed=False)
        return min(in_memory, needed_bytes(rows, C, streamed=True)) if has_file else in_memory

    if needed(n) > memory:
        n_fitting = bisect_right(range(n), memory, key=needed) - 1
        raise InputError(
            f"{n:,} rows, whose kernels need {needed(n) / 2**30:.3g} GiB",
            expected=f"at most memory={memory / 2**30:.3g} GiB",
            hint=f"pass about {n_fitting:,} random rows and their labels, or more memory",
        )
    return needed_bytes(n, C, streamed=False) > memory


def needed_bytes(n: int, C: int, *, streamed: bool) -> int:
    """Return the memory of an account of n rows and C classes; ``streamed``: their kernels are in files."""
    code = kernel_code_bytes(n, C, OnlineOptions(), streamed=streamed)
    return max(8 * n * (n + STREAMED_COLUMNS) if streamed else MATRICES * 8 * n * n, code)


def _left_out(
    reference: Reference, labels: Tensor, C: int, memory: int | str
) -> tuple[LeftOutBits, Callable[[Tensor], Tensor]]:
    """Return the bits of the labels by the other rows, and a function from rows to their classes without any of their labels."""
    if reference.kernel is None:
        p = reference.probabilities
        assert p is not None
        return left_out_bits(p.clamp_min(1e-12).log(), labels), lambda rows: p[rows].argmax(1)
    kernel = reference.kernel
    targets = F.one_hot(labels, C).to(torch.float64) - 1 / C
    grid = float(kernel.diagonal().mean()) * torch.logspace(-6, 3, N_RIDGES, dtype=torch.float64)
    ridge = choose_ridge(kernel, targets, grid=grid, memory=memory).ridge
    bits = left_out_bits(leave_one_out(kernel, targets, ridge, memory=memory).predictions, labels, choices=N_RIDGES)
    # factorized again by each call, of which there are few: kept, its n x n matrices would add to those of the online code
    return bits, lambda rows: leave_one_out(kernel, targets, ridge, memory=memory).block(rows).argmax(1)
