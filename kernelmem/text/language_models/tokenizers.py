"""Functions from text to token ids and back, from tokenizers of several libraries."""

import inspect
from collections.abc import Callable
from typing import TypeAlias, cast

from kernelmem.core import InputError
from kernelmem.core.checks import ArrayLike

Encode: TypeAlias = Callable[[str], ArrayLike]
Decode: TypeAlias = Callable[[list[int]], str]


def tokenizer_functions(tokenizer: object, given: str, hint: str) -> tuple[Encode, Decode | None]:
    """Return the functions from text to token ids, without special tokens, and back.

    They are the methods of an object with encode and decode (of transformers, tokenizers, tiktoken, sentencepiece and others),
    or a function from text to token ids, which has no way back.

    Args:
        tokenizer: the object or function.
        given: description of ``tokenizer`` for the error.
        hint: what to do if it is neither, for the error.

    Raises:
        InputError: something that cannot encode.
    """
    method, decode = getattr(tokenizer, "encode", None), getattr(tokenizer, "decode", None)
    encode = method if callable(method) and not isinstance(tokenizer, str) else tokenizer
    if not callable(encode):
        raise InputError(
            given,
            expected="an object with encode and decode, or a function from text to token ids",
            hint=hint,
        )
    options = {"add_special_tokens": False} if _accepts(encode, "add_special_tokens") else {}

    def token_ids(text: str) -> ArrayLike:
        made = encode(text, **options)
        return cast("ArrayLike", getattr(made, "ids", made))  # tokenizers returns an object that has them

    if not callable(decode) or encode is not method:
        return token_ids, None
    return token_ids, lambda ids: cast("str", decode(ids))


def _accepts(function: Callable[..., object], parameter: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return parameter in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
