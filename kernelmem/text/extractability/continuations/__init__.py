"""Greedy continuations of prefixes, compared with documents at all offsets.

- ``near_verbatim``: :func:`near_verbatim`;
- ``result``: similarities, rates and controls;
- ``alignment``: common substrings, edit distance and n-grams of two texts.
"""

from kernelmem.text.extractability.continuations.near_verbatim import near_verbatim as near_verbatim
from kernelmem.text.extractability.continuations.result import NearVerbatim as NearVerbatim
