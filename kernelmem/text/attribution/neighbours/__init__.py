"""Language model with a memory of documents: the positive control of an audit, and nearest documents as sources.

- ``neighbour_memory``: ``neighbour_memory``.
- ``result``: ``NeighbourMemory``.
- ``hidden_states``: what the output layer of a model sees.
- ``nearest_states``: exact search of nearest neighbours among hidden states.
"""

from kernelmem.text.attribution.neighbours.neighbour_memory import neighbour_memory as neighbour_memory
from kernelmem.text.attribution.neighbours.result import NeighbourMemory as NeighbourMemory
