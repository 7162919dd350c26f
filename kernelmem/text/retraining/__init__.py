"""Training of many small models: counterfactual memorization of documents.

- ``counterfactual``: ``counterfactual``.
- ``result``: ``Counterfactual``.
- ``estimates``: memorization with standard errors, permuted masks, reliability, membership from the same models.
- ``ensemble``: models trained in one batch by vmap, or one after the other.
"""

from kernelmem.text.retraining.counterfactual import counterfactual as counterfactual
from kernelmem.text.retraining.result import Counterfactual as Counterfactual
