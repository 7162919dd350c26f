"""Data sets, losses and training loops: many networks in one batch, or one classifier.

- ``datasets``: scikit-learn's digits, .npz files, arrays with checked labels.
- ``image_datasets``: CIFAR-10 and MNIST from local files.
- ``mlp``: multilayer perceptrons, plain and with standardized inputs.
- ``losses``: per-example losses by name.
- ``batching``: batch sizes, orders of rows from a seed, rows in the dtype of the model.
- ``loop``: the epoch loop that all trainers of one network share.
- ``classifier``: train one classifier with Adam.
- ``ensemble``: train many networks of one recipe at once.
"""

from kernelmem.training.batching import BatchOrder as BatchOrder
from kernelmem.training.batching import shuffled as shuffled
from kernelmem.training.classifier import Training as Training
from kernelmem.training.classifier import train_classifier as train_classifier
from kernelmem.training.datasets import LabeledData as LabeledData
from kernelmem.training.datasets import LabeledDataLike as LabeledDataLike
from kernelmem.training.datasets import as_labeled_data as as_labeled_data
from kernelmem.training.datasets import digits as digits
from kernelmem.training.datasets import labeled_data as labeled_data
from kernelmem.training.datasets import read_npz as read_npz
from kernelmem.training.ensemble import Ensemble as Ensemble
from kernelmem.training.ensemble import EnsembleOptions as EnsembleOptions
from kernelmem.training.ensemble import Member as Member
from kernelmem.training.ensemble import Recipe as Recipe
from kernelmem.training.ensemble import StepMetrics as StepMetrics
from kernelmem.training.ensemble import train_mlps as train_mlps
from kernelmem.training.ensemble import train_modules as train_modules
from kernelmem.training.ensemble import train_one as train_one
from kernelmem.training.image_datasets import cifar10 as cifar10
from kernelmem.training.image_datasets import mnist as mnist
from kernelmem.training.losses import Loss as Loss
from kernelmem.training.losses import per_example_loss as per_example_loss
from kernelmem.training.mlp import Standardize as Standardize
from kernelmem.training.mlp import mlp as mlp
from kernelmem.training.mlp import standardized_mlp as standardized_mlp
