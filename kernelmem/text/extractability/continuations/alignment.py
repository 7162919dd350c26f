"""Similarity of generated text to a document, over all offsets: common substrings, edit distance, n-grams."""

import numpy as np

PADDING = -1


def longest_common(generated: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Return the tokens of the longest common substring of W generated texts (W, m) and documents (W, n), (W,).

    Documents are padded with −1. Cost: O(m n) per pair.
    """
    longest = np.zeros(len(generated), dtype=np.int64)
    run = np.zeros((len(documents), documents.shape[1] + 1), dtype=np.int64)  # match that ends at each token
    for token in generated.T:
        run[:, 1:] = np.where(documents == token[:, None], run[:, :-1] + 1, 0)
        longest = np.maximum(longest, run.max(1))
    return longest


def edit_distance(generated: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Return the smallest edit distance of W generated texts (W, m) to any substring of their document (W, n), (W,).

    Insertions, deletions and substitutions of tokens cost 1; the substring may start and end anywhere, and may be empty: the
    distance is at most m. Documents are padded with −1. Cost: O(m n) per pair.

    Source: Sellers 1980.
    """
    places = np.arange(documents.shape[1] + 1)
    inside = places <= (documents != PADDING).sum(1)[:, None]
    distance = np.zeros((len(documents), len(places)), dtype=np.int64)  # of the empty text to the best substring's end
    for token in generated.T:
        best = distance + 1  # the token is inserted
        best[:, 1:] = np.minimum(best[:, 1:], distance[:, :-1] + (documents != token[:, None]))
        distance = np.minimum.accumulate(best - places, axis=1) + places  # tokens of the document are deleted
    return np.where(inside, distance, generated.shape[1]).min(1)


def contained(generated: np.ndarray, documents: np.ndarray, n: int) -> np.ndarray:
    """Return the share of the n-grams of W generated texts (W, m ≥ n) that occur in their document, (W,)."""
    shares = np.zeros(len(generated))
    for i, (text, document) in enumerate(zip(generated.tolist(), documents.tolist(), strict=True)):
        known = {tuple(document[j : j + n]) for j in range(len(document) - n + 1)}
        grams = [tuple(text[j : j + n]) for j in range(len(text) - n + 1)]
        shares[i] = sum(gram in known for gram in grams) / len(grams)
    return shares
