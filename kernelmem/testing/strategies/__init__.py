"""Hypothesis strategies: random networks together with inputs (needs ``hypothesis``).

::

    networks.py    networks, linear_networks: strategies of a Case (model, x, y)
    layers.py      random layers on vectors (n, d) and sequences (n, S, d)
    grids.py       random layers on signals, images and volumes
"""

from kernelmem.testing.cases import Case as Case
from kernelmem.testing.strategies.networks import linear_networks as linear_networks
from kernelmem.testing.strategies.networks import networks as networks
