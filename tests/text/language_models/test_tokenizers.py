"""kernelmem.text.language_models.tokenizers: tokenizers of several libraries, by what their methods take and return."""

from typing import ClassVar

import pytest

from kernelmem.auditing.text.inputs import encoding_functions
from kernelmem.auditing.text.options import TextAuditOptions
from kernelmem.core import InputError
from kernelmem.text.language_models import tokenizer_functions


class Own:
    def encode(self, text):
        return [1] * len(text)

    def decode(self, ids):
        return "a" * len(ids)


class Special(Own):
    """As of transformers: special tokens unless they are refused."""

    def __call__(self, text):
        return {"input_ids": self.encode(text)}

    def encode(self, text, add_special_tokens=True):
        return [0] * add_special_tokens + [1] * len(text)


class Encoding:
    ids: ClassVar = [1]


class Objects:
    """As of tokenizers: an object that has the ids."""

    def encode(self, text):
        return Encoding() if text else []

    def decode(self, ids):
        return "a" * len(ids)


@pytest.mark.parametrize("tokenizer", [Own(), Special(), Objects()])
def test_tokenizers_of_several_libraries_are_recognized(tokenizer):
    for encode, decode in (
        tokenizer_functions(tokenizer, "a tokenizer", "hint"),
        encoding_functions(TextAuditOptions(encode=tokenizer)),
    ):
        assert encode is not None
        assert decode is not None
        assert encode("a") == [1]
        assert decode([1]) == "a"


def test_a_function_has_no_way_back():
    encode, decode = tokenizer_functions(Own().encode, "a tokenizer", "hint")
    assert encode("a") == [1]
    assert decode is None


@pytest.mark.parametrize("wrong", [None, "text", 3, {}])
def test_others_are_refused(wrong):
    with pytest.raises(InputError, match="a tokenizer"):
        tokenizer_functions(wrong, "a tokenizer", "hint")
