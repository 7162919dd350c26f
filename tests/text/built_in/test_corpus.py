"""Documents of the built-in audit: distinct blocks, and a code of characters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmem import text
from kernelmem.core import InputError
from kernelmem.text.built_in.corpus import CHARACTERS, VOCABULARY
from tests.profiles import examples


@pytest.mark.parametrize("size", [128, 64])
def test_blocks_are_distinct_and_of_one_length(size):
    blocks = text.topic_blocks(size)
    assert {len(block) for block in blocks} == {size}
    assert len(set(blocks)) == len(blocks)
    assert {c for block in blocks for c in block} <= set(CHARACTERS)


def test_blocks_of_half_the_size_are_their_halves():
    halves = {half for block in text.topic_blocks(128) for half in (block[:64], block[64:])}
    assert halves - set(text.topic_blocks(64)) == set()


@examples(0.3)
@given(st.text(CHARACTERS))
def test_decoding_inverts_encoding(document):
    tokens = text.encode_characters(document)
    assert all(0 < token < VOCABULARY for token in tokens)
    assert text.decode_characters([0, *tokens]) == document
    assert len(tokens) == len(document)


def test_other_characters_and_tokens_are_refused():
    with pytest.raises(InputError, match=r"U\+00E9 at position 3"):
        text.encode_characters("café")
    with pytest.raises(InputError, match="ids"):
        text.decode_characters([VOCABULARY])
    with pytest.raises(InputError, match="size"):
        text.topic_blocks(0)
