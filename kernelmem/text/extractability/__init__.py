"""Extraction of training text from language models, by greedy decoding and by samples, with controls.

- ``extraction``: :func:`extraction`;
- ``result``: its rates, excess over unseen text, classes and spans;
- ``sampling``: :class:`Sampling`, and the probability that a text is among n samples;
- ``near_verbatim``: :func:`near_verbatim`, greedy continuations compared with documents at all offsets;
- ``near_result``: its similarities, rates and controls;
- ``alignment``: common substrings, edit distance and n-grams of two texts;
- ``prompts``: prefixes and contexts, greedy decoding;
- ``windows``: prefix and suffix, and what a model makes of every suffix.
"""

from kernelmem.text.extractability.extraction import extraction as extraction
from kernelmem.text.extractability.near_result import NearVerbatim as NearVerbatim
from kernelmem.text.extractability.near_verbatim import near_verbatim as near_verbatim
from kernelmem.text.extractability.result import Extraction as Extraction
from kernelmem.text.extractability.sampling import Sampling as Sampling
from kernelmem.text.extractability.sampling import emission_probability as emission_probability
from kernelmem.text.extractability.sampling import log10_queries as log10_queries
