"""Valid calls of the analysis of texts and language models."""

from kernelmem import text
from tests.border.driver import Call

TEXTS = ["the same text twice", "the same text again", "", "another"]

CALLS = {
    "suffix_array": Call(text.suffix_array, lambda: {"texts": list(TEXTS), "memory": "1GiB"}),
    "suffix_array(ids).count": Call(
        lambda texts, spans: text.suffix_array(texts).count(spans),
        lambda: {"texts": [[1, 2], [2]], "spans": [[2], [1]]},
    ),
    "duplicates": Call(text.duplicates, lambda: {"texts": list(TEXTS), "length": 8, "memory": "1GiB"}),
    "near_duplicates": Call(
        text.near_duplicates,
        lambda: {"texts": list(TEXTS), "threshold": 0.5, "shingle": 3, "hashes": 32, "seed": 0, "memory": "1GiB"},
    ),
}
