"""Design of canaries: pairs of random secrets, of which a coin decides which one is inserted."""

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_count, as_list, as_text, describe, seed_sequence
from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.core.files.atomic_files import write_file
from kernelmem.core.files.hashed_files import (
    READ_ERRORS,
    WRITER,
    check_json,
    hashed_json,
    load_json,
    read_bytes,
    reason,
)
from kernelmem.core.files.result_files import Result, check_consistent, decode
from kernelmem.text.canary.encoding import Encode, check_encode, encode_canaries, encode_text
from kernelmem.text.canary.insertion import CanaryRows, insert_copies

if TYPE_CHECKING:
    import pandas as pd

LETTERS = string.ascii_uppercase
MAX_PAIRS, MAX_SYMBOLS, MAX_LENGTH, MAX_COPIES = 100_000, 256, 256, 2**20
MAX_BITS = 62  # of log2 R, so that ranks are int64


@dataclass(frozen=True, eq=False, repr=False)
class Canaries(Result):
    """n pairs of canaries, of which one is inserted in the training set; the other, its twin, is the control.

    Every canary has a code of its own and an independent secret, uniform over the R = A^L words of L symbols of an alphabet of
    A. An independent fair coin decides which canary of a pair is inserted. ``save`` writes JSON with a SHA-256.

    Attributes:
        format: text of a canary, with {code} and, at its end, {secret}.
        alphabet: the A symbols.
        tokens: (A,) int64, token of each symbol.
        codes: the two codes of each pair.
        secrets: (n, 2, L) int64, positions in the alphabet of the symbols of each secret.
        heads: token ids of the text before the secret, of both canaries of each pair.
        inserted: (n,) int64, 0 or 1: which canary of the pair is inserted.
        repetitions: (n,) int64, number of copies of the inserted canary.
        seed: seed from which codes, secrets, coins and the assignment of repetitions were drawn.
    """

    format: str
    alphabet: tuple[str, ...]
    tokens: Tensor
    codes: tuple[tuple[str, str], ...]
    secrets: Tensor
    heads: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    inserted: Tensor
    repetitions: Tensor
    seed: int

    shapes: ClassVar[Mapping[str, str]] = {
        **{"alphabet": "A", "tokens": "A", "codes": "n", "secrets": "n2L", "heads": "n"},
        **{"inserted": "n", "repetitions": "n"},
    }

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def length(self) -> int:
        """Number L of symbols of a secret."""
        return self.secrets.shape[2]

    @property
    def n_candidates(self) -> int:
        """Number R of possible secrets."""
        return len(self.alphabet) ** self.length

    @property
    def texts(self) -> tuple[tuple[str, str], ...]:
        """The text of both canaries of each pair."""
        secrets = self.secrets.tolist()
        return tuple(
            (self._text(pair[0], secret[0]), self._text(pair[1], secret[1]))
            for pair, secret in zip(self.codes, secrets, strict=True)
        )

    def _text(self, code: str, secret: Sequence[int]) -> str:
        return _head_text(self.format, code) + "".join(self.alphabet[i] for i in secret)

    def ids(self, pair: int, variant: int) -> Tensor:
        """Return the token ids of one canary: those of its head, then one per symbol of its secret."""
        head = torch.tensor(self.heads[pair][variant], dtype=torch.int64)
        return torch.cat([head, self.tokens[self.secrets[pair, variant]]])

    def insert(
        self, documents: Sequence[str], encode: Encode, *, context: int = 24, separator: str = "\n", seed: int = 0
    ) -> CanaryRows:
        r"""Return training rows: the documents, and a row for each copy of each inserted canary, in random order.

        A copy is preceded by ``context`` characters of the documents, cut between words and different for all copies of a
        canary, and by ``separator``: a model that saw its canaries only at the beginning of rows may not repeat them
        elsewhere. The ids of a canary are those of :func:`canaries` in every row; nothing is encoded again.

        Args:
            documents: texts to train on.
            encode: the function that :func:`canaries` was given.
            context: largest number of characters before each copy; 0: none (all copies of a canary are then equal rows).
            separator: text between context and canary, so that their words are not joined.
            seed: seed of the contexts and of the order of rows.

        Raises:
            InputError: the documents have too little text, or ``encode`` gives other ids than those of the canaries.

        Cost: one call of ``encode`` per document and copy.
        """
        check_encode(encode)
        if len(self):
            head = self.heads[0][0]
            if encode_text(encode, self.texts[0][0]) != [*head, *self.tokens[self.secrets[0, 0]].tolist()]:
                raise InputError(
                    "encode, which gives canary 0 other ids than canaries() stored",
                    expected="the same encoding",
                    hint="pass the function that canaries() was given",
                )
        pairs = zip(self.inserted.tolist(), self.repetitions.tolist(), strict=True)
        copies = [(self.ids(pair, variant), number) for pair, (variant, number) in enumerate(pairs)]
        return insert_copies(documents, encode, copies, context=context, separator=separator, seed=seed)

    def save(self, path: str | Path) -> Path:
        """Write the design to a JSON file with a SHA-256 of its content, whole or not at all.

        Raises:
            InputError: ``path`` is a directory, or one of its parents is a file.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in values.items()}
        return write_file(path, hashed_json({"file": f"{WRITER} {self._file_format()}", **values}).encode())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a design from :meth:`save`.

        Raises:
            FileCorruptError: the file is missing, truncated, altered, or of another kind.
        """
        try:
            values = check_json(load_json(read_bytes(path), finite=True))
            if values.pop("file", None) != f"{WRITER} {cls._file_format()}":
                raise ValueError("another format")
            lists = {name: decode(values.pop(name), annotation, name) for name, annotation in _TENSORS.items()}
            tensors = {name: torch.tensor(value, dtype=torch.int64) for name, value in lists.items()}
            references = {name: {"tensor": name} for name in _TENSORS}
            design = decode({**values, **references}, cls, cls.__name__, tensors)
            check_consistent(design)
            _check_design(design)
            return design
        except (*READ_ERRORS, AttributeError, RuntimeError) as error:
            raise FileCorruptError(
                f"file {path}, read as {WRITER} {cls._file_format()} ({reason(error)})",
                expected="a file written by Canaries.save",
                hint="make the canaries again, from the same seed and encoding",
            ) from error

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per canary, with columns ``pair``, ``variant``, ``code``, ``inserted`` and ``repetitions``."""
        import pandas as pd  # slow to import

        inserted, repetitions = self.inserted.tolist(), self.repetitions.tolist()
        rows = [
            (
                pair,
                variant,
                self.codes[pair][variant],
                variant == inserted[pair],
                repetitions[pair] * (variant == inserted[pair]),
            )
            for pair in range(len(self))
            for variant in (0, 1)
        ]
        return pd.DataFrame(rows, columns=["pair", "variant", "code", "inserted", "repetitions"])

    def __str__(self) -> str:
        tiers = torch.unique(self.repetitions, return_counts=True)
        sizes = ", ".join(f"{n} x {k}" for k, n in zip(*(t.tolist() for t in tiers), strict=True))
        return (
            f"{len(self):,} pairs of canaries {self.format!r}, one of each pair inserted by a fair coin, its twin left out\n"
            f"  secrets: {self.length} symbols of {len(self.alphabet)}, {math.log2(self.n_candidates):.2f} bits; "
            f"copies (pairs x copies): {sizes}; seed {self.seed}"
        )


_TENSORS = {"secrets": list[list[list[int]]], **dict.fromkeys(("tokens", "inserted", "repetitions"), list[int])}


def canaries(
    n: int,
    encode: Encode,
    *,
    format: str = "key of unit {code}: {secret}",  # noqa: A002
    alphabet: str | Sequence[str] = "0123456789",
    length: int = 6,
    tiers: Sequence[int] = (1, 2, 4, 8, 16),
    seed: int = 0,
) -> Canaries:
    """Draw n pairs of canaries and the coins that decide which canary of each pair is inserted.

    Codes are different for all 2n canaries. Secrets are independent and uniform over all R = A^L words, so that the rank of a
    canary that was not inserted is uniform in 1..R. The pairs are divided evenly among the tiers, independently of the coins.

    Args:
        n: number of pairs.
        encode: maps text to a vector of token ids, without special tokens.
        format: text of a canary, with {code} before {secret}, and {secret} at the end.
        alphabet: the A symbols of secrets, characters or texts, none the beginning of another; each must have one token.
        length: number L of symbols.
        tiers: numbers of copies of an inserted canary.
        seed: seed of codes, secrets, coins and the assignment of tiers.

    Raises:
        InputError: an option out of range, R above 2⁶², or an encoding in which a symbol is not one token.

    Cost: 2 calls of ``encode`` per canary and A² / 2 more.

    Source: Carlini et al. 2019; Steinke, Nasr and Jagielski 2023 (coins).

    >>> print(canaries(10, lambda text: [ord(c) for c in text]))
    10 pairs of canaries 'key of unit {code}: {secret}', one of each pair inserted by a fair coin, its twin left out
      secrets: 6 symbols of 10, 19.93 bits; copies (pairs x copies): 2 x 1, 2 x 2, 2 x 4, 2 x 8, 2 x 16; seed 0
    """
    n, length = as_count(n, "n", maximum=MAX_PAIRS), as_count(length, "length", maximum=MAX_LENGTH)
    symbols = _as_alphabet(alphabet)
    copies = [as_count(k, "tiers", maximum=MAX_COPIES) for k in as_list(tiers, "tiers")]
    if not copies or len(set(copies)) < len(copies):
        raise InputError(
            f"tiers={describe(tiers)}", expected="different numbers of copies", hint="pass tiers=(1, 4, 16)"
        )
    if length * math.log2(len(symbols)) > MAX_BITS:
        raise InputError(
            f"secrets of {length * math.log2(len(symbols)):.1f} bits",
            expected=f"at most {MAX_BITS} bits, length x log2 of the number of symbols",
            hint="shorten the secrets; 20 bits are more than most audits can tell apart",
        )
    _head_text(format, "")
    check_encode(encode)
    seeds = seed_sequence(seed, ["codes", "secrets", "coins", "tiers"])
    source = {name: np.random.default_rng(value) for name, value in seeds.items()}
    codes = _draw_codes(2 * n, source["codes"])
    secrets = source["secrets"].integers(len(symbols), size=(2 * n, length))
    heads = [_head_text(format, code) for code in codes]
    tokens, head_ids = encode_canaries(encode, heads, secrets.tolist(), symbols)
    repetitions = np.resize(copies, n)[source["tiers"].permutation(n)]
    return Canaries(
        format,
        symbols,
        torch.tensor(tokens),
        tuple(zip(codes[::2], codes[1::2], strict=True)),
        torch.from_numpy(secrets.reshape(n, 2, length)),
        tuple((tuple(a), tuple(b)) for a, b in zip(head_ids[::2], head_ids[1::2], strict=True)),
        torch.from_numpy(source["coins"].integers(2, size=n)),
        torch.from_numpy(repetitions.astype(np.int64)),
        int(seed),
    )


def _as_alphabet(alphabet: str | Sequence[str]) -> tuple[str, ...]:
    """Return the symbols, of which none is the beginning of another, so that a secret is one sequence of symbols only.

    Raises:
        InputError: fewer than 2 symbols, too many, or one that begins another.
    """
    values = list(alphabet) if isinstance(alphabet, str) else as_list(alphabet, "alphabet")
    symbols = tuple(as_text(symbol, "alphabet") for symbol in values)
    ordered = sorted(symbols)
    begins = any(b.startswith(a) for a, b in pairwise(ordered))
    if not 2 <= len(symbols) <= MAX_SYMBOLS or begins:
        raise InputError(
            f"alphabet={describe(alphabet)}",
            expected=f"2 to {MAX_SYMBOLS} different symbols, none of which begins another",
            hint='pass alphabet="0123456789"',
        )
    return symbols


def _head_text(template: str, code: str) -> str:
    """Return the text of a canary before its secret.

    Raises:
        InputError: the format does not have {code} once and {secret} once, at the end.
    """
    try:
        pieces = list(string.Formatter().parse(as_text(template, "format")))
    except ValueError:  # braces that do not match
        pieces = []
    if [name for _, name, *_ in pieces] != ["code", "secret"] or any(s or c for _, _, s, c in pieces):
        raise InputError(
            f"format={describe(template)}",
            expected="text with {code} once, then {secret} once, which ends it",
            hint='pass format="key of unit {code}: {secret}"',
        )
    return pieces[0][0] + code + pieces[1][0]


def _draw_codes(number: int, source: np.random.Generator) -> list[str]:
    """Return different codes of letters, of which at most one in a hundred possible ones is used."""
    size = max(4, math.ceil(math.log(100 * number) / math.log(len(LETTERS))))
    drawn = source.choice(len(LETTERS) ** size, number, replace=False)
    return [
        "".join(LETTERS[value // len(LETTERS) ** k % len(LETTERS)] for k in range(size)) for value in drawn.tolist()
    ]


def _check_design(design: Canaries) -> None:
    """Check the values of a design that was read.

    Raises:
        ValueError: they are not those of a design.
    """
    A = len(design.alphabet)
    _head_text(design.format, "")
    _as_alphabet(design.alphabet)
    ranges = [(design.secrets, A), (design.inserted, 2), (design.tokens, 2**31), (design.repetitions - 1, MAX_COPIES)]
    if not len(design) or design.length == 0 or any(int(t.min()) < 0 or int(t.max()) >= m for t, m in ranges):
        raise ValueError("values out of range")
    heads = [head for pair in design.heads for head in pair]
    if len(set(heads)) < len(heads) or any(not head or min(head) < 0 for head in heads):
        raise ValueError("heads that are empty or equal")
    if len(set(design.tokens.tolist())) < A or design.length * math.log2(A) > MAX_BITS:
        raise ValueError("tokens that are not different, or secrets that are too long")
