"""Train many networks of one recipe in one batch.

- ``train``: :func:`train_mlps`, :func:`train_modules`, :func:`train_one` and their result.
- ``recipe``: optimizer, schedule, batches and loss.
- ``members``: the networks, the options, and their checked data.
- ``metrics``: losses and errors of all members.
- ``ragged_layout``, ``ragged_mlp``: MLPs of different widths in padded batched products.
- ``vmapped``: any module, by ``torch.func.vmap`` over members of one width.
- ``sequential``: one network by a plain loop, the reference for the others.
"""

from kernelmem.training.ensemble.members import EnsembleOptions as EnsembleOptions
from kernelmem.training.ensemble.members import EnsembleTask as EnsembleTask
from kernelmem.training.ensemble.members import Member as Member
from kernelmem.training.ensemble.members import as_task as as_task
from kernelmem.training.ensemble.metrics import StepMetrics as StepMetrics
from kernelmem.training.ensemble.ragged_layout import chunks as chunks
from kernelmem.training.ensemble.ragged_mlp import RaggedMLPs as RaggedMLPs
from kernelmem.training.ensemble.recipe import Recipe as Recipe
from kernelmem.training.ensemble.recipe import make_optimizer as make_optimizer
from kernelmem.training.ensemble.train import Ensemble as Ensemble
from kernelmem.training.ensemble.train import train_mlps as train_mlps
from kernelmem.training.ensemble.train import train_modules as train_modules
from kernelmem.training.ensemble.train import train_one as train_one
