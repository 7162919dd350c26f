"""Attribution of outputs to training examples, tested against retraining.

- ``linear_datamodeling``: :func:`lds`, rank agreement with models retrained on random subsets, with ceiling and null;
- ``predictors``: what an attribution predicts for a subset: a sum, or the refit of a kernel machine;
- ``subset_outcomes``: outputs of the retrained models, grouped by subset.
"""

from kernelmem.memorization.attribution.linear_datamodeling import LDS as LDS
from kernelmem.memorization.attribution.linear_datamodeling import lds as lds
from kernelmem.memorization.attribution.predictors import Attribution as Attribution
from kernelmem.memorization.attribution.predictors import SubsetPredictor as SubsetPredictor
from kernelmem.memorization.attribution.predictors import kernel_refit as kernel_refit
