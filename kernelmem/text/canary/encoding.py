"""Token ids of canaries: one token per symbol of the secret, after a head that does not depend on the secret."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
import torch

from kernelmem.core.checks import ArrayLike, check_callable, describe
from kernelmem.core.errors import InputError

Encode: TypeAlias = Callable[[str], ArrayLike]
"""Maps text to a vector of token ids, without special tokens."""

MAX_ID = 2**31 - 1


def check_encode(encode: object) -> None:
    """Check that ``encode`` is a function of text that adds no special tokens.

    Raises:
        InputError: it is not, or the empty text has tokens.
    """
    check_callable(encode, "encode", ["text"])
    if encode_text(encode, ""):  # pyright: ignore[reportArgumentType]
        raise InputError(
            "encode, which adds tokens to the empty text",
            expected="the ids of the text only, without tokens for its beginning and end",
            hint='pass encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]',
        )


def encode_text(encode: Encode, text: str) -> list[int]:
    """Return the token ids of a text.

    Raises:
        InputError: ``encode`` raises an error, or does not return a vector of whole numbers in 0..2³¹−1.
    """
    try:
        value = encode(text)
    except Exception as error:
        raise InputError(
            f"encode, which raised {type(error).__name__} for a text of {len(text)} characters",
            expected="a function that gives the token ids of documents, canaries and the separator",
            hint="remove characters that the vocabulary lacks, or choose another format, alphabet or separator",
        ) from error
    ids: object = value
    if isinstance(value, torch.Tensor):
        ids = value.tolist() if value.layout is torch.strided and not (value.is_nested or value.is_meta) else None
    elif isinstance(value, np.ndarray):
        ids = value.tolist()
    elif isinstance(value, tuple | range):
        ids = list(value)
    if isinstance(ids, list):
        numbers = [int(i) for i in ids if isinstance(i, int | np.integer) and not isinstance(i, bool)]
        if len(numbers) == len(ids) and all(0 <= i <= MAX_ID for i in numbers):
            return numbers
    raise InputError(
        f"encode, which returns {describe(value, 40)}",
        expected="a vector of token ids, whole numbers >= 0",
        hint='pass encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]',
    )


def encode_canaries(
    encode: Encode, heads: Sequence[str], secrets: Iterable[Sequence[int]], alphabet: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """Return the token of each symbol, and the ids of each head.

    Every ordered pair of symbols is encoded once after the first head, and every head with its own secret and with one other:
    encode(head + secret) must be the head's ids followed by one token per symbol, because an exact rank counts token sequences.

    Raises:
        InputError: a symbol does not have its own token wherever it occurs, or two heads or symbols have equal ids.
    """
    length = len(next(iter(secrets)))
    first = [encode_text(encode, heads[0] + symbol * length) for symbol in alphabet]
    tokens = [ids[-1] if ids else -1 for ids in first]
    if len(set(tokens)) < len(alphabet):
        raise _merged(f"{len(alphabet)} symbols with {len(set(tokens))} different tokens")
    head_ids = [_head(encode, head, secret, tokens, alphabet) for head, secret in zip(heads, secrets, strict=True)]
    pairs = [(a, b) for a in range(len(alphabet)) for b in range(a, len(alphabet))]
    for a, b in pairs:  # a, b, a, b, ... holds both orders of the pair
        _check_head(encode, heads[0], head_ids[0], ([a, b] * length)[:length], tokens, alphabet)
    for i, head in enumerate(heads):
        symbol = i % len(alphabet)
        _check_head(encode, head, head_ids[i], [symbol] * length, tokens, alphabet)
    if len({tuple(ids) for ids in head_ids}) < len(heads):
        raise InputError(
            "encode, which gives canaries with different codes the same ids",
            expected="different ids for different codes of capital letters",
            hint="use a tokenizer that knows capital letters",
        )
    return tokens, head_ids


def _head(
    encode: Encode, head: str, secret: Sequence[int], tokens: Sequence[int], alphabet: Sequence[str]
) -> list[int]:
    """Return the ids of the head, from those of the head and a secret."""
    ids = encode_text(encode, head + "".join(alphabet[i] for i in secret))
    if len(ids) <= len(secret) or ids[-len(secret) :] != [tokens[i] for i in secret]:
        raise _merged("a secret whose last tokens are not those of its symbols by themselves")
    return ids[: -len(secret)]


def _check_head(
    encode: Encode,
    head: str,
    head_ids: list[int],
    secret: Sequence[int],
    tokens: Sequence[int],
    alphabet: Sequence[str],
) -> None:
    """Check that the head has the same ids before another secret."""
    if _head(encode, head, secret, tokens, alphabet) != head_ids:
        raise _merged("a canary whose first tokens depend on its secret")


def _merged(problem: str) -> InputError:
    return InputError(
        f"an encoding with {problem}",
        expected="one token per symbol of the secret, whatever the other symbols are",
        hint='separate the symbols: format="key of unit {code}:{secret}", alphabet=[" 0", " 1", ..., " 9"], or words after a '
        "space that have a token each",
    )
