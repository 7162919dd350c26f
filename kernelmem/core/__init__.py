"""Foundations of every package: errors, checks of what users pass in, files, shared options.

errors          the exception tree
checks          arrays, labels, kernels, numbers and seeds that users pass in
batches         model inputs (tensor, dict, tuple, Dataset, DataLoader) as rows
options         memory limits and progress
symmetry        asymmetry and symmetric part of a matrix
files           files that are whole or absent, results, weights loaded without running code
tasks           independent tasks, serial or by an executor
models          private copies of models, how they are run; the only import of torch.func
"""

from kernelmem.core.batches import Batch as Batch
from kernelmem.core.batches import Forward as Forward
from kernelmem.core.batches import Rows as Rows
from kernelmem.core.batches import as_rows as as_rows
from kernelmem.core.checks import ArrayLike as ArrayLike
from kernelmem.core.checks import seed_sequence as seed_sequence
from kernelmem.core.errors import FileCorruptError as FileCorruptError
from kernelmem.core.errors import InputError as InputError
from kernelmem.core.errors import KernelmemError as KernelmemError
from kernelmem.core.errors import NumericalError as NumericalError
from kernelmem.core.errors import TaskError as TaskError
from kernelmem.core.errors import UnsupportedModelError as UnsupportedModelError
from kernelmem.core.errors import VerificationError as VerificationError
from kernelmem.core.files import Result as Result
from kernelmem.core.files import array_sha256 as array_sha256
from kernelmem.core.files import check_directory as check_directory
from kernelmem.core.files import fit_weights as fit_weights
from kernelmem.core.files import load_weights as load_weights
from kernelmem.core.files import write_file as write_file
from kernelmem.core.files import write_files as write_files
from kernelmem.core.options import Progress as Progress
from kernelmem.core.tasks import SubmititExecutor as SubmititExecutor
