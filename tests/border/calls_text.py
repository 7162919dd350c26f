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
    "ngram_model": Call(
        text.ngram_model, lambda: {"documents": [[0, 1, 2], [1]], "order": 2, "vocabulary": 3, "memory": "1GiB"}
    ),
    "ngram_model.log_probs": Call(
        lambda documents, memory: list(text.ngram_model([[0, 1, 2]]).log_probs(documents, memory=memory)),
        lambda: {"documents": [[0, 1], [2]], "memory": "1GiB"},
    ),
    "ngram_model.next_log_probs": Call(
        text.ngram_model([[0, 1, 2]]).next_log_probs, lambda: {"prefixes": [[0, 1], []], "memory": "1GiB"}
    ),
}
