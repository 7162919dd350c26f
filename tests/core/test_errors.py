"""kernelmem.core.errors: what errors say can be printed anywhere, as it is read."""

import pickle
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core.errors import InputError, printable
from tests.profiles import examples

DIRECTIONS = {"RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "FSI", "PDI"}  # Unicode's bidirectional controls
TEXT = st.text(st.one_of(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), st.characters()), max_size=30)


@given(TEXT)
@examples(3)
def test_any_text_becomes_printable_once(text):
    shown = printable(text)
    shown.encode("utf-8")
    assert not any(unicodedata.bidirectional(character) in DIRECTIONS for character in shown)
    assert not any(unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t" for character in shown)
    assert printable(shown) == shown
    error = InputError(text, expected=text, hint=text)
    assert (error.given, error.expected, error.hint) == (shown, shown, shown)
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == printable(str(error))


def test_names_in_any_script_are_left_alone():
    for text in ("données.npz", "Δοκιμή", "テスト 😀 данные", "a\tb\nc", "\N{ZERO WIDTH JOINER}"):
        assert printable(text) == text
