"""Tokens of a document in runs of equal emphasis, by the bits that the model saves compared with the reference."""

from itertools import groupby

from kernelmem.auditing.text.schema import DocumentFinding

LEVELS = (0.5, 1.0, 2.0, 4.0)  # bits saved from which on a token is marked


def highlighted(document: DocumentFinding) -> list[tuple[int, str]]:
    """Return (level, text) of runs of tokens, level 0 to 4; empty if the text is not revealed."""
    if document.text is None:
        return []
    levels = [sum(bits >= level for level in LEVELS) for bits in document.saved]
    pairs = zip(levels, document.text, strict=True)
    return [(level, "".join(text for _, text in run)) for level, run in groupby(pairs, key=lambda pair: pair[0])]
