"""Text that documents share: suffix arrays, repeated spans, near-duplicates, n-gram models.

- ``sequences``: texts or token ids as one array of symbols;
- ``suffix_array``: :func:`suffix_array`, which counts spans;
- ``duplicates``: :func:`duplicates`, spans that occur more than once;
- ``near_duplicates``: :func:`near_duplicates`, pairs of similar documents, by MinHash.
"""

from kernelmem.text.overlap.duplicates import Duplicates as Duplicates
from kernelmem.text.overlap.duplicates import duplicates as duplicates
from kernelmem.text.overlap.near_duplicates import NearDuplicates as NearDuplicates
from kernelmem.text.overlap.near_duplicates import near_duplicates as near_duplicates
from kernelmem.text.overlap.suffix_array import SuffixArray as SuffixArray
from kernelmem.text.overlap.suffix_array import suffix_array as suffix_array
