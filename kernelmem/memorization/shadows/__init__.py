"""Shadow ensembles: many models, each trained on a random subset of the rows.

- ``ensemble``: :class:`ShadowEnsemble`, the outputs that are kept, and its identity.
- ``train``: :func:`shadow_ensemble`, which trains it, in one process or by an executor.
- ``options``: :class:`ShadowOptions`, and :class:`EnsembleTraining`, the training of all models together.
- ``masks``: random subsets, independent or balanced, and the seeds of the models.
- ``training_data``: checked rows and labels.
- ``chunks``: picklable tasks of some models each.
- ``identity``: hashes of data and training; what differs between two ensembles.
- ``directory``: the files of finished chunks.
"""

from kernelmem.memorization.shadows.ensemble import ShadowEnsemble as ShadowEnsemble
from kernelmem.memorization.shadows.ensemble import ShadowIdentity as ShadowIdentity
from kernelmem.memorization.shadows.masks import draw_masks as draw_masks
from kernelmem.memorization.shadows.masks import model_seeds as model_seeds
from kernelmem.memorization.shadows.options import EnsembleTraining as EnsembleTraining
from kernelmem.memorization.shadows.options import ShadowOptions as ShadowOptions
from kernelmem.memorization.shadows.options import TrainFunction as TrainFunction
from kernelmem.memorization.shadows.train import shadow_ensemble as shadow_ensemble
