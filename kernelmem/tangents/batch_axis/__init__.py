"""Axis of a tensor that holds the examples of a batch, or an index of the example of each entry.

- ``static.py``: an axis of n (or n times m) entries in the order of the examples, inferred from shapes
- ``ragged.py``: entries in any order and number (routed, sorted, packed rows), located by tagged gradients
"""

from kernelmem.tangents.batch_axis.ragged import RaggedAxis as RaggedAxis
from kernelmem.tangents.batch_axis.ragged import locate_rows as locate_rows
from kernelmem.tangents.batch_axis.ragged import row_tags as row_tags
from kernelmem.tangents.batch_axis.static import BatchAxis as BatchAxis
from kernelmem.tangents.batch_axis.static import find_batch_axis as find_batch_axis
from kernelmem.tangents.batch_axis.static import resolve_interleaving as resolve_interleaving
