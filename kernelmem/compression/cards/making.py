"""Make a card: train a network for a short code, encode the labels with it, decode them again."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kernelmem.compression.cards.code import MAX_CLASSES, TwoPartCode, encode
from kernelmem.compression.cards.container import Record
from kernelmem.compression.cards.inputs import FRACTION_BITS, InputGrid, input_grid, input_sha256
from kernelmem.compression.cards.network import Architecture
from kernelmem.compression.cards.options import CardOptions
from kernelmem.compression.cards.result import Card, as_card_rows, label_sha256
from kernelmem.compression.cards.training import train as train_numbers
from kernelmem.compression.online import online_code
from kernelmem.core import ArrayLike, InputError, Progress
from kernelmem.core.checks import as_count, as_labels, as_names, as_pair, as_seed, as_text, check_instance
from kernelmem.core.options import as_progress
from kernelmem.core.tasks import one_thread
from kernelmem.kernels import infinite_ntk

ONLINE_ROWS = 2000  # largest number of rows for which the online code is computed: it takes time n³


def card(
    train: tuple[ArrayLike, ArrayLike],
    test: tuple[ArrayLike, ArrayLike] | None = None,
    *,
    n_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "data",
    seed: int = 0,
    options: CardOptions | None = None,
    progress: Progress = None,
) -> Card:
    """Train a small network for the shortest code of itself and of the labels given it, and return both as a card.

    The code has two parts, and holds all that was chosen after the labels were seen::

        bits = header + L(network) + L(labels | network)

    The network has one hidden layer of ReLU units. Its weights are initial weights from the seed plus d random directions
    times d whole numbers, which are trained with noise and coded by a discretized Laplace distribution. It is evaluated in
    whole numbers, exactly: a decoder on another machine gets the same labels. Labels that the network does not predict, such
    as random ones, are coded with uniform probabilities. The online code of a kernel is usually much shorter: a card is made
    to be shipped, since it holds a network.

    Args:
        train: rows (n, ...) and labels (n,). Labels are class indices.
        test: rows and labels on which the network is tested, for a certificate. They do not influence the code, except for
            the number of classes if ``n_classes`` is None.
        n_classes: number C of classes, 2 to 2,048; None: the largest label plus one.
        class_names: C names, kept in the file; None: none.
        name: name of the data set, kept in the file.
        seed: seed of the initial weights, the directions and the batches. Seeds above 0 cost one or more bytes.
        options: size of the network and training; None: ``CardOptions()``.
        progress: called with (steps and numbers tried, all), the second part of them in sweeps, which may end early.

    Returns:
        Card: the code with its parts, its labels (decoded from the code), comparison and certificates.

    Raises:
        InputError: rows that are not finite numbers, labels that are not class indices or do not fit the rows, fewer than two
            classes, a network whose random directions do not fit into memory.

    Cost: ``steps`` gradients of a batch, then 4 ``dimensions`` forward passes of all rows for each of at most ``sweeps``
    sweeps; none where that would take longer than about 20 seconds. The online code is computed for up to 2,000 rows.

    Source: two-part codes: Rissanen 1978; random directions: Li et al. 2018, Lotfi et al. 2022.
    """
    options = CardOptions() if options is None else options
    check_instance(options, "options", CardOptions)
    seed, name, names = as_seed(seed), as_text(name, "name"), as_names(class_names, "class_names")
    report = as_progress(progress, "card")
    if n_classes is not None:
        n_classes = as_count(n_classes, "n_classes", minimum=2, maximum=MAX_CLASSES)
    x, y = _as_rows_and_labels(train, "train", n_classes)
    held_out = None if test is None else _as_rows_and_labels(test, "test", n_classes)
    C = _number_of_classes([y] if held_out is None else [y, held_out[1]], n_classes, names)
    if held_out is not None and held_out[0].shape[1] != x.shape[1]:
        raise InputError(
            f"test rows of {held_out[0].shape[1]} numbers, and training rows of {x.shape[1]}",
            expected="rows of the same shape",
            hint="preprocess both in the same way",
        )
    grid, labels = input_grid(x), y.numpy()
    z = grid.apply(x)
    architecture = Architecture(x.shape[1], options.width, C, options.dimensions, seed)
    with one_thread():
        code = encode(architecture, train_numbers(architecture, z, labels, options, report), labels, z)
        record = Record(
            n=len(labels),
            n_features=x.shape[1],
            x_sha256=input_sha256(x),
            y_sha256=label_sha256(y),
            name=name,
            class_names=tuple(names or ()),
            errors=_errors(code, grid, x, labels),
            grid_bits=grid.bits,
            held_out=None,
            online=_online(z, y, C),
        )
        if held_out is not None and code.has_network:
            x_test, y_test = held_out
            record = replace(record, held_out=(_errors(code, grid, x_test, y_test.numpy()), len(y_test)))
        return Card.from_code(record, code.data, x)


def _as_rows_and_labels(pair: object, name: str, n_classes: int | None) -> tuple[np.ndarray, Tensor]:
    x, y = as_pair(pair, name)
    rows = as_card_rows(x, f"x of {name}")
    return rows, as_labels(y, f"y of {name}", n=len(rows), n_classes=n_classes).cpu().clone()


def _number_of_classes(labels: list[Tensor], n_classes: int | None, names: list[str] | None) -> int:
    """Return the number of classes, 2 to ``MAX_CLASSES``, from the argument or else from the labels.

    Raises:
        InputError: another number, or a number of names that differs.
    """
    found = 1 + int(max(y.max() for y in labels))
    C = n_classes or max(found, len(names or ()))
    if not 2 <= C <= MAX_CLASSES:
        raise InputError(
            f"{C:,} classes (the largest label plus one)",
            expected=f"2 to {MAX_CLASSES:,} classes",
            hint="number the classes from 0 without gaps, or pass n_classes if some have no rows",
        )
    if names and len(names) != C:
        raise InputError(
            f"class_names of {len(names)} names, and {C} classes", expected=f"{C} names", hint="pass one name per class"
        )
    return C


def _errors(code: TwoPartCode, grid: InputGrid, x: np.ndarray, labels: np.ndarray) -> int | None:
    """Return the number of rows whose most probable label, given the network, differs from the label."""
    if not code.has_network:
        return None
    return int((code.network(x.shape[1]).logits(grid.apply(x)).argmax(1) != labels).sum())


def _online(z: np.ndarray, y: Tensor, n_classes: int) -> tuple[int, int] | None:
    """Return bits and mistakes of the online code of the infinite NTK with two hidden layers; None for many rows."""
    if len(z) > ONLINE_ROWS:
        return None
    kernel = infinite_ntk(torch.from_numpy(z / (1 << FRACTION_BITS)), depth=2, bias_var=0.1)
    code = online_code(kernel, y, n_classes=n_classes)
    return code.bits, code.mistakes
