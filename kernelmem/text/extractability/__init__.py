"""Extraction of training text from language models, by greedy decoding and by samples, with controls.

- ``extraction``: :func:`extraction`;
- ``result``: its rates, excess over unseen text, classes and spans;
- ``sampling``: :class:`Sampling`, and the probability that a text is among n samples;
- ``continuations``: :func:`near_verbatim`, greedy continuations compared with documents at all offsets;
- ``prompts``: prefixes and contexts, greedy decoding;
- ``spans``: overlapping extracted windows as one span, counted in documents;
- ``strength``: :func:`extraction_strength`, the share of a document that greedy decoding completes;
- ``templates``: :func:`text_template`, repetitions and progressions that need no memory;
- ``windows``: prefix and suffix, and what a model makes of every suffix.
"""

from kernelmem.text.extractability.continuations import NearVerbatim as NearVerbatim
from kernelmem.text.extractability.continuations import near_verbatim as near_verbatim
from kernelmem.text.extractability.extraction import extraction as extraction
from kernelmem.text.extractability.result import Extraction as Extraction
from kernelmem.text.extractability.sampling import Sampling as Sampling
from kernelmem.text.extractability.sampling import emission_probability as emission_probability
from kernelmem.text.extractability.sampling import log10_queries as log10_queries
from kernelmem.text.extractability.strength import extraction_strength as extraction_strength
from kernelmem.text.extractability.templates import text_template as text_template
