"""Training of many small models: counterfactual memorization of documents, capacity.

- ``counterfactual``: ``counterfactual``.
- ``result``: ``Counterfactual``.
- ``estimates``: memorization with standard errors, permuted masks, reliability, membership from the same models.
- ``capacity``: ``capacity``, bits of random strings that a model memorizes.
- ``capacity_result``: ``Capacity``.
- ``ensemble``: models trained in one batch by vmap, or one after the other.
"""

from kernelmem.text.retraining.capacity import capacity as capacity
from kernelmem.text.retraining.capacity_result import Capacity as Capacity
from kernelmem.text.retraining.counterfactual import counterfactual as counterfactual
from kernelmem.text.retraining.result import Counterfactual as Counterfactual
