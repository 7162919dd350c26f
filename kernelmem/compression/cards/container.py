"""File of a card: a container of hashes, names and recorded numbers around the code.

    magic | SHA-256 of what follows | length of the record (4 bytes) | record (JSON) | code

Nothing in the container is needed to decode the labels: it says which rows the code belongs to, and what was measured.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from kernelmem.core.files.hashed_files import load_json, read_bytes
from kernelmem.core.files.result_files import decode

MAGIC = b"kernelmem card 1\n"
PREFIX = len(MAGIC) + 32 + 4
HASH_LENGTH = 64  # of a SHA-256 in hexadecimal digits


@dataclass(frozen=True)
class Record:
    """Numbers and names in the container of a card.

    Attributes:
        n: number of rows.
        n_features: number of features of a row, flattened.
        x_sha256, y_sha256: SHA-256 of the rows (float64) and of the labels (int64).
        name: name of the data set.
        class_names: names of the classes, or () if labels are class indices.
        errors: number of rows whose most probable label, given the network, differs from the label; None without a network.
        grid_bits: length of a code of the centers and scales of the inputs.
        held_out: (errors, rows) of the network on held-out rows, or None.
        online: (bits, mistakes) of the online code of a kernel, or None.
    """

    n: int
    n_features: int
    x_sha256: str
    y_sha256: str
    name: str
    class_names: tuple[str, ...]
    errors: int | None
    grid_bits: int
    held_out: tuple[int, int] | None
    online: tuple[int, int] | None

    def __post_init__(self) -> None:
        pairs = [
            (self.n, self.n),
            (self.n_features, self.n_features),
            (self.errors or 0, self.n),
            self.held_out or (0, 1),
        ]
        pairs += [((self.online or (0, 0))[1], self.n), (self.grid_bits, 2**40), ((self.online or (0, 0))[0], 2**53)]
        hashes = (self.x_sha256, self.y_sha256)
        is_valid = all(0 <= value <= limit and limit >= 1 for value, limit in pairs)
        if not is_valid or any(len(text) != HASH_LENGTH for text in hashes):
            raise ValueError("a record with numbers out of range")


def pack(record: Record, code: bytes) -> bytes:
    """Return the content of the file."""
    text = json.dumps(asdict(record), separators=(",", ":"), ensure_ascii=False).encode()
    body = len(text).to_bytes(4, "big") + text + code
    return MAGIC + hashlib.sha256(body).digest() + body


def read(path: Path) -> tuple[Record, bytes]:
    """Return the record and the code of a file.

    Raises:
        One of ``READ_ERRORS``: there is no such file, it is not that of a card, or it is damaged.
    """
    content = read_bytes(path)
    if not content.startswith(MAGIC):
        raise ValueError("not a card")
    digest, body = content[len(MAGIC) : PREFIX - 4], content[PREFIX - 4 :]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("its sha256 differs from the recorded one")
    end = 4 + int.from_bytes(body[:4], "big")
    if not 4 < end <= len(body):
        raise ValueError("truncated")
    return decode(load_json(body[4:end]), Record, "record"), body[end:]
