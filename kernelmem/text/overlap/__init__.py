"""Text that documents share: suffix arrays, repeated spans, near-duplicates, n-gram models.

- ``sequences``: texts or token ids as one array of symbols;
- ``suffix_array``: :func:`suffix_array`, which counts spans;
- ``duplicates``: :func:`duplicates`, spans that occur more than once;
- ``shared_text``: :func:`shared_text`, text of held-out documents that occurs in others, too;
- ``near_duplicates``: :func:`near_duplicates`, pairs of similar documents, by MinHash.
- ``ngram_model``: :func:`ngram_model`, the control of a language model.
"""

from kernelmem.text.overlap.duplicates import Duplicates as Duplicates
from kernelmem.text.overlap.duplicates import duplicates as duplicates
from kernelmem.text.overlap.near_duplicates import NearDuplicates as NearDuplicates
from kernelmem.text.overlap.near_duplicates import near_duplicates as near_duplicates
from kernelmem.text.overlap.ngram_model import NgramModel as NgramModel
from kernelmem.text.overlap.ngram_model import ngram_model as ngram_model
from kernelmem.text.overlap.shared_text import shared_text as shared_text
from kernelmem.text.overlap.suffix_array import SuffixArray as SuffixArray
from kernelmem.text.overlap.suffix_array import suffix_array as suffix_array
