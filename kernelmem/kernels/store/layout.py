"""Layout of a stored kernel: its shape, dtype and tiles, and the text form of its facts."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from kernelmem.core.checks import as_count, as_flag, as_float_dtype, check_instance, describe
from kernelmem.core.errors import InputError
from kernelmem.core.files.hashed_files import JSON

MAX_TILES = 10**6
MAX_TILE_BYTES = 2**29  # SQLite stores at most 1e9 bytes in a row
MAX_FACT_BYTES = 2**24
DTYPES = {"float32": torch.float32, "float64": torch.float64}

Index = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """Shape (n, m), dtype and tiles of a kernel; tile (i, j) holds rows i·tile.. and columns j·tile.., fewer at the end.

    Attributes:
        n: number of rows.
        m: number of columns.
        tile: largest number of rows and of columns of a tile.
        dtype: torch.float32 or torch.float64.
        symmetric: the kernel is symmetric, and only the tiles (i, j) with i <= j are stored.
    """

    n: int
    m: int
    tile: int
    dtype: torch.dtype
    symmetric: bool

    @classmethod
    def checked(cls, n: object, m: object, tile: object, dtype: object, symmetric: object) -> "Layout":
        """Return the layout of these values after checking them.

        Raises:
            InputError: a value of another type or range, a symmetric kernel that is not square, tiles that are too large
                or too many.
        """
        rows, columns, size = as_count(n, "n"), as_count(m, "m"), as_count(tile, "tile")
        layout = cls(rows, columns, size, as_float_dtype(dtype), as_flag(symmetric, "symmetric"))
        if layout.symmetric and rows != columns:
            raise InputError(
                f"symmetric=True for a kernel of shape ({rows}, {columns})",
                expected="a square kernel",
                hint="pass symmetric=False for the kernel between two sets of rows",
            )
        largest = math.isqrt(MAX_TILE_BYTES // layout.dtype.itemsize)
        smallest = math.ceil(math.sqrt(rows / MAX_TILES * columns))
        height, width = layout.tile_shape((0, 0))
        if height * width * layout.dtype.itemsize > MAX_TILE_BYTES or math.prod(layout.grid) > MAX_TILES:
            raise InputError(
                f"tile={size} for a kernel of shape ({rows}, {columns})",
                expected=f"at most {MAX_TILES:,} tiles of at most {MAX_TILE_BYTES // 2**20} MiB",
                hint=f"pass a tile between {smallest} and {largest}, such as {min(max(1024, smallest), largest)}",
            )
        return layout

    @property
    def grid(self) -> Index:
        """The number of rows and of columns of tiles."""
        return -(-self.n // self.tile), -(-self.m // self.tile)

    @property
    def tile_bytes(self) -> int:
        """The number of bytes of the largest tile."""
        return math.prod(self.tile_shape((0, 0))) * self.dtype.itemsize

    def stored(self) -> Iterator[Index]:
        """Yield the indices (i, j) of the tiles that a complete file holds, row by row."""
        for i in range(self.grid[0]):
            for j in range(i if self.symmetric else 0, self.grid[1]):
                yield i, j

    @property
    def n_stored(self) -> int:
        """The number of tiles that a complete file holds."""
        height, width = self.grid
        return height * (height + 1) // 2 if self.symmetric else height * width

    @property
    def last(self) -> Index:
        """The index of the last tile."""
        return self.grid[0] - 1, self.grid[1] - 1

    def rows_of(self, i: int) -> slice:
        """Return the rows of the kernel that are in tiles (i, ...)."""
        return slice(i * self.tile, min((i + 1) * self.tile, self.n))

    def columns_of(self, j: int) -> slice:
        """Return the columns of the kernel that are in tiles (..., j)."""
        return slice(j * self.tile, min((j + 1) * self.tile, self.m))

    def tile_shape(self, index: Index) -> Index:
        """Return the number of rows and columns of a tile."""
        rows, columns = self.rows_of(index[0]), self.columns_of(index[1])
        return rows.stop - rows.start, columns.stop - columns.start

    def number(self, index: Index) -> int:
        """Return the key of a tile in the file."""
        return index[0] * self.grid[1] + index[1]

    def check_index(self, i: object, j: object) -> Index:
        """Return the index (i, j) of a tile.

        Raises:
            InputError: not two whole numbers inside of the grid.
        """
        height, width = self.grid
        return as_count(i, "i", minimum=0, maximum=height - 1), as_count(j, "j", minimum=0, maximum=width - 1)

    def facts(self) -> dict[str, JSON]:
        """Return the layout as values of a JSON object."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"n": self.n, "m": self.m, "tile": self.tile, "dtype": dtype, "symmetric": self.symmetric}


def as_facts(facts: object, name: str = "facts") -> dict[str, JSON]:
    """Return a dict of JSON values, as it is read from a file.

    Raises:
        InputError: not a dict with text as keys, values that JSON does not have, or more than 16 MiB of text.
    """
    check_instance(facts, name, Mapping, hint=f'pass {name}={{"model": "sha256 of its weights"}}')
    assert isinstance(facts, Mapping)
    problem = next((f"the key {describe(key)}" for key in facts if not isinstance(key, str)), "")
    text = ""
    if not problem:
        try:
            text = json.dumps(dict(facts), sort_keys=True, allow_nan=False)
            json.dumps(dict(facts), ensure_ascii=False).encode()  # refuses lone surrogates
        except (TypeError, ValueError, RecursionError) as error:
            problem = str(error)[:200]
    if problem or len(text) > MAX_FACT_BYTES:
        raise InputError(
            f"{name} with {problem or f'{len(text)} characters'}",
            expected="a dict of text, numbers, True, False, None, and lists and dicts of them",
            hint="store the SHA-256 of arrays, as text",
        )
    return json.loads(text)


def facts_hash(layout: Layout, facts: Mapping[str, JSON]) -> str:
    """Return the SHA-256 of a layout and the facts of a kernel."""
    text = json.dumps({"layout": layout.facts(), "facts": dict(facts)}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def notes_hash(notes: Mapping[str, JSON]) -> str:
    """Return the SHA-256 of the notes of a kernel."""
    return hashlib.sha256(json.dumps(dict(notes), sort_keys=True, allow_nan=False).encode()).hexdigest()


def differences(stored: Mapping[str, JSON], given: Mapping[str, JSON]) -> list[str]:
    """Return one text for each key whose values differ, sorted by key; keys of dicts inside are joined by dots."""
    texts: list[str] = []
    for key in sorted({*stored, *given}):
        old, new = stored.get(key, _MISSING), given.get(key, _MISSING)
        if isinstance(old, dict) and isinstance(new, dict):
            texts += [f"{key}.{text}" for text in differences(old, new)]
        elif old is _MISSING or new is _MISSING or json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True):
            texts.append(f"{key} ({_short(old)} in the store, {_short(new)} now)")
    return texts


_MISSING = object()


def _short(value: object) -> str:
    text = "absent" if value is _MISSING else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:20]}...{text[-12:]}"
