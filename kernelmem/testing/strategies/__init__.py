"""Hypothesis strategies: random networks together with inputs, and junk arguments (needs ``hypothesis``).

::

    networks.py    networks, linear_networks: strategies of a Case (model, x, y)
    layers.py      random layers on vectors (n, d) and sequences (n, S, d)
    grids.py       random layers on signals, images and volumes
    junk.py        junk: unusual and invalid arguments of each kind
    junk_arrays.py arrays, defects, spoiled: arrays of random shape and content, valid arrays with a defect
"""

from kernelmem.testing.cases import Case as Case
from kernelmem.testing.strategies.junk import KINDS as KINDS
from kernelmem.testing.strategies.junk import junk as junk
from kernelmem.testing.strategies.junk_arrays import Junk as Junk
from kernelmem.testing.strategies.junk_arrays import arrays as arrays
from kernelmem.testing.strategies.junk_arrays import defects as defects
from kernelmem.testing.strategies.junk_arrays import spoiled as spoiled
from kernelmem.testing.strategies.networks import linear_networks as linear_networks
from kernelmem.testing.strategies.networks import networks as networks
