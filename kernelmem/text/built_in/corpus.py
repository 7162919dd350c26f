"""Documents of the demonstration: help texts of Python, character by character, in distinct blocks of one length."""

import re
import unicodedata

from kernelmem.core import InputError
from kernelmem.core.checks import as_count, as_list, as_text

BOS = 0
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))  # token i + 1 is character i
VOCABULARY = len(CHARACTERS) + 1

_FOLDED = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "ß": "ss", "°": " "})
_TOKENS = {character: token for token, character in enumerate(CHARACTERS, start=1)}


def topic_blocks(size: int = 128) -> tuple[str, ...]:
    """Return the distinct blocks of ``size`` characters of the help topics that Python ships, in their order.

    The topics (``pydoc_data.topics``, 465,000 characters in Python 3.11) are reduced to ASCII and joined; a rest shorter than
    ``size`` is left out. The text depends on the version of Python. Blocks are different from each other, but share text:
    45 % of the characters are in a string of 50 that occurs more than once.

    Raises:
        InputError: ``size`` is not in 1..100,000.

    >>> len(set(topic_blocks())) == len(topic_blocks()) > 2400
    True
    """
    from pydoc_data import topics  # 700 kB

    size = as_count(size, "size", maximum=100_000)
    folded = unicodedata.normalize("NFKD", "".join(topics.topics.values()).translate(_FOLDED))
    text = re.sub(r"[^\n -~]", "", folded)
    blocks = (text[start : start + size] for start in range(0, len(text) - size + 1, size))
    return tuple(dict.fromkeys(blocks))


def encode_characters(text: str) -> list[int]:
    r"""Return one token per character: 1 for a line break, 2..96 for printable ASCII. Token 0 is BOS.

    Raises:
        InputError: another character.

    >>> encode_characters("\nA ")
    [1, 35, 2]
    """
    tokens = [_TOKENS.get(character, BOS) for character in as_text(text, "text")]
    if BOS in tokens:
        raise InputError(
            f"text with character U+{ord(text[tokens.index(BOS)]):04X} at position {tokens.index(BOS)}",
            expected="printable ASCII characters and line breaks",
            hint="replace other characters, or use a tokenizer of your own",
        )
    return tokens


def decode_characters(ids: object) -> str:
    """Return the text of tokens in 1..96; BOS, 0, is left out.

    Raises:
        InputError: other tokens.

    >>> decode_characters([0, 35, 2])
    'A '
    """
    tokens = [as_count(token, "ids", minimum=0, maximum=VOCABULARY - 1) for token in as_list(ids, "ids")]
    return "".join(CHARACTERS[token - 1] for token in tokens if token != BOS)
