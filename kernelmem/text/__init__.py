"""Memorization in language models: losses of tokens, canaries, extraction, membership, repeated text.

- ``documents``: ragged token ids;
- ``overlap``: repeated spans, near-duplicates, counts of spans.
"""

from kernelmem.text.overlap import Duplicates as Duplicates
from kernelmem.text.overlap import NearDuplicates as NearDuplicates
from kernelmem.text.overlap import SuffixArray as SuffixArray
from kernelmem.text.overlap import duplicates as duplicates
from kernelmem.text.overlap import near_duplicates as near_duplicates
from kernelmem.text.overlap import suffix_array as suffix_array
