"""Shadow ensembles: many models, each trained on a random subset of the rows.

- ``ensemble``: :class:`ShadowEnsemble`, the outputs that are kept, and its identity.
"""

from kernelmem.memorization.shadows.ensemble import ShadowEnsemble as ShadowEnsemble
from kernelmem.memorization.shadows.ensemble import ShadowIdentity as ShadowIdentity
