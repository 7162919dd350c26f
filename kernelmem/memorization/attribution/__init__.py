"""Attribution of outputs to training examples, tested against retraining.

- ``linear_datamodeling``: :func:`lds`, rank agreement with models retrained on random subsets, with ceiling and null;
- ``query_loss``: :func:`qld`, loss after retraining without the rows that an attribution ranks highest;
- ``subset_bank``: :func:`subset_bank`, models retrained on subsets of one size with several seeds each;
- ``predictors``: what an attribution predicts for a subset: a sum, or the refit of a kernel machine;
- ``subset_outcomes``: outputs of the retrained models, grouped by subset.

An attribution is an array (t, n), or a result for one function of each row, such as ``target="margin"``, of ``km.influence``
(method "unrolled", "tracin" or "last") or ``km.ledger``; of a kernel machine: :func:`leave_one_out_attribution` and
:func:`kernel_refit`.
"""

from kernelmem.memorization.attribution.linear_datamodeling import LDS as LDS
from kernelmem.memorization.attribution.linear_datamodeling import lds as lds
from kernelmem.memorization.attribution.predictors import Attribution as Attribution
from kernelmem.memorization.attribution.predictors import SubsetPredictor as SubsetPredictor
from kernelmem.memorization.attribution.predictors import kernel_refit as kernel_refit
from kernelmem.memorization.attribution.predictors import leave_one_out_attribution as leave_one_out_attribution
from kernelmem.memorization.attribution.query_loss import QLD as QLD
from kernelmem.memorization.attribution.query_loss import qld as qld
from kernelmem.memorization.attribution.subset_bank import subset_bank as subset_bank
