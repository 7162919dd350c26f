"""Memorization and influence by retraining on random subsets (Feldman and Zhang 2020).

- ``feldman_zhang``: :func:`feldman_zhang` and its result :class:`Retraining`; counterfactual memorization.
- ``influence_pairs``: influence on test rows, and the pairs in which it is high.
- ``consistency``: :func:`c_score`, accuracy of models without the row.
- ``agreement``: split-half reliability, and agreement of other scores with memorization by retraining.
- ``differences``: means of models with and without a row, with standard errors and intervals.
"""

from kernelmem.memorization.retraining.agreement import Agreement as Agreement
from kernelmem.memorization.retraining.consistency import Consistency as Consistency
from kernelmem.memorization.retraining.consistency import c_score as c_score
from kernelmem.memorization.retraining.feldman_zhang import Retraining as Retraining
from kernelmem.memorization.retraining.feldman_zhang import counterfactual_memorization as counterfactual_memorization
from kernelmem.memorization.retraining.feldman_zhang import feldman_zhang as feldman_zhang
from kernelmem.memorization.retraining.influence_pairs import HighInfluencePairs as HighInfluencePairs
from kernelmem.memorization.retraining.influence_pairs import RetrainingInfluence as RetrainingInfluence
