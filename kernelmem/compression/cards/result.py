"""Card: a network and the labels given it, in one file from which the labels come back."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from kernelmem.compression.cards import container
from kernelmem.compression.cards.code import decode_labels, read_network
from kernelmem.compression.cards.inputs import input_grid, input_sha256
from kernelmem.compression.certificates import (
    Certificate,
    certificate,
    held_out_certificate,
    online_certificate,
    print_order,
)
from kernelmem.core import ArrayLike, FileCorruptError, InputError, Result, write_file
from kernelmem.core.checks import as_path, as_tensor
from kernelmem.core.errors import printable
from kernelmem.core.files.hashed_files import READ_ERRORS, reason

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS = 10**6


@dataclass(frozen=True, eq=False, repr=False)
class Card(Result):
    """A network and the labels given it, in a code that decodes.

    Attributes:
        code: (bytes,) uint8, the code.
        labels: (n,) int64 class indices; None if the file was opened without its rows.
        record: numbers and names in the container of the file.
        n_classes: number C of classes.
        header_bits: length of the header.
        network_bits: length of the whole numbers that determine the weights; 0 where the network does not pay.
        width, dimensions, seed: number of hidden units, number of whole numbers, seed of the random directions.
    """

    code: Tensor
    labels: Tensor | None
    record: container.Record
    n_classes: int
    header_bits: int
    network_bits: float
    width: int
    dimensions: int
    seed: int

    @property
    def bits(self) -> int:
        """Length of the code, 8 bits per byte."""
        return 8 * len(self.code)

    @property
    def parts(self) -> dict[str, float]:
        """Bits of the header, of the network, and of the labels given it, with about 28 bits of the coder's final state."""
        return {
            "header": float(self.header_bits),
            "network": self.network_bits,
            "labels": self.bits - self.header_bits - self.network_bits,
        }

    @property
    def uniform(self) -> float:
        """Bits of the labels before anything is known, n log₂ C."""
        return self.record.n * math.log2(self.n_classes)

    @property
    def online(self) -> int | None:
        """Bits of the online code of a kernel, which needs no network; None if it was not computed."""
        return None if self.record.online is None else self.record.online[0]

    @property
    def container_bytes(self) -> int:
        """Bytes of the file that are not code."""
        return len(container.pack(self.record, b""))

    def certificates(self, *, delta: float = 0.05) -> list[Certificate]:
        """Return bounds on error rates, from held-out rows, online mistakes and the code of the network, where known."""
        record, found = self.record, []
        if record.held_out is not None:
            found.append(held_out_certificate(*record.held_out, delta=delta))
        if record.online is not None:
            found.append(online_certificate(record.online[1], record.n, delta=delta))
        if record.errors is not None:
            bits = self.header_bits + self.network_bits + record.grid_bits
            found.append(certificate(record.errors, record.n, bits=bits, delta=delta))
        return print_order(found)

    def save(self, path: str | Path) -> Path:
        """Write the card to one file, whole or not at all. :func:`open_card` reads it.

        Raises:
            InputError: ``path`` is a directory, or one of its parents is a file.
        """
        return write_file(path, container.pack(self.record, self.code.numpy().tobytes()))

    @classmethod
    def load(cls, path: str | Path, x: ArrayLike | None = None) -> Self:
        """Read a card from its file; the same as :func:`open_card`."""
        path = as_path(path, "path", any_bytes=True)
        rows = None if x is None else as_card_rows(x, "x")
        try:
            record, data = container.read(path)
            card = cls.from_code(record, data)
        except READ_ERRORS as error:
            raise _corrupt(path, error) from error
        if rows is None:
            return card
        if input_sha256(rows) != record.x_sha256:
            raise InputError(
                f"x of shape {tuple(rows.shape)} that differs from the rows of card {path}",
                expected=f"the {record.n:,} rows of {record.n_features:,} numbers that it was made from, in their order",
                hint="pass the same array; a conversion to another floating-point type changes numbers",
            )
        try:
            return cls.from_code(record, data, rows)
        except READ_ERRORS as error:
            raise _corrupt(path, error) from error

    @classmethod
    def from_code(cls, record: container.Record, data: bytes, x: np.ndarray | None = None) -> Self:
        """Return the card of a code, with its labels if the rows (n, p) are given.

        Raises:
            One of ``READ_ERRORS``: the code, the record and the rows do not fit together.
        """
        code, decoder = read_network(data)
        if (record.errors is not None) != code.has_network or record.n > MAX_ROWS:
            raise ValueError("a record that does not fit the code")
        if record.class_names and len(record.class_names) != code.n_classes:
            raise ValueError(f"{len(record.class_names)} class names for {code.n_classes} classes")
        labels = None
        if x is not None:
            grid = input_grid(x)
            z, network = grid.apply(x), code.network(x.shape[1]) if code.has_network else None
            labels = torch.from_numpy(decode_labels(code, decoder, network, z))
            if label_sha256(labels) != record.y_sha256:
                raise ValueError("its labels differ from the recorded hash")
            errors = None if network is None else int((network.logits(z).argmax(1) != labels.numpy()).sum())
            if (errors, grid.bits) != (record.errors, record.grid_bits):
                raise ValueError("its recorded numbers are not those of the network")
        return cls(
            code=torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy()),
            labels=labels,
            record=record,
            n_classes=code.n_classes,
            header_bits=code.header_bits,
            network_bits=code.network_bits,
            width=code.width,
            dimensions=code.dimensions,
            seed=code.seed,
        )

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per part of the code: name, bits, share of the code."""
        import pandas as pd

        frame = pd.DataFrame({"part": list(self.parts), "bits": list(self.parts.values())})
        return frame.assign(share=frame["bits"] / self.bits)

    def __str__(self) -> str:
        """Return lengths, comparison with other codes, and certificates."""
        record, parts = self.record, self.parts
        lines = [
            f"card of {record.n:,} labels, {self.n_classes} classes ({printable(record.name[:100])}): {self.bits:,} bits,"
            f" {self.bits / record.n:.3f} per label, {self.bits / self.uniform:.1%} of the {self.uniform:,.0f} of uniform labels",
            f"  header {parts['header']:.0f}, network {parts['network']:.0f}, labels given the network {parts['labels']:.0f}",
            f"  file: {len(self.code):,} bytes of code, {self.container_bytes:,} of container (hashes, names, recorded numbers)",
        ]
        if record.errors is None:
            lines.append(
                "  no network in the file: the code would be longer than uniform labels (fewer dimensions take fewer bits)"
            )
        else:
            lines.append(
                f"  network: {self.dimensions} whole numbers in -15..15, {self.width} hidden units, seed {self.seed};"
                f" wrong on {record.errors:,} of {record.n:,} rows"
            )
        if record.online is not None:
            lines.append(f"  online code of a kernel, which holds no network: {record.online[0]:,} bits")
        lines += ["  " + line for item in self.certificates() for line in str(item).splitlines()]
        lines.append(
            f"  labels {'not decoded: that needs the rows' if self.labels is None else 'decoded; their hash matches'}"
        )
        return "\n".join(lines)


def open_card(path: str | Path, x: ArrayLike | None = None) -> Card:
    """Read a card; with the rows x, decode its labels.

    The network is evaluated in whole numbers, so that the labels are the same on every machine; nothing in the file is
    executed.

    Args:
        path: file that ``card.save`` or ``kernelmem compress`` has written.
        x: the rows (n, ...) that the card was made from, in their order. None: labels are not decoded.

    Returns:
        Card: with ``labels``, if ``x`` is given. Numbers of held-out rows and of the online code are those recorded.

    Raises:
        FileCorruptError: the file is missing, damaged or not a card, or its labels do not decode to those recorded.
        InputError: ``x`` is not the rows of the card.

    Cost: d times the number of weights, and one forward pass.
    """
    return Card.load(path, x)


def as_card_rows(x: ArrayLike, name: str) -> np.ndarray:
    """Return rows (n, p) float64, further axes flattened.

    Raises:
        InputError: not at least one row of at least one finite number.
    """
    rows = as_tensor(x, name, dtype=torch.float64, squared=True).cpu()
    if rows.ndim < 2 or not rows.numel() or len(rows) > MAX_ROWS:
        raise InputError(
            f"{name} of shape {tuple(rows.shape)}",
            expected=f"1 to {MAX_ROWS:,} rows: shape (n, features) or (n, ...)",
            hint="put the examples along the first axis",
        )
    return rows.flatten(1).numpy()


def label_sha256(labels: Tensor) -> str:
    """Return the SHA-256 of labels (n,) int64."""
    return hashlib.sha256(labels.numpy().astype("<i8").tobytes()).hexdigest()


def _corrupt(path: Path, error: Exception) -> FileCorruptError:
    missing = isinstance(error, FileNotFoundError)
    return FileCorruptError(
        f"file {path} ({reason(error)})",
        expected="a card as card.save has written it",
        hint="check the path" if missing else "write the card again",
    )
