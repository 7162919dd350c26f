"""Checks of what users pass in, one function for each kind of argument, with errors that say what to fix.

arrays     arrays and tensors of finite numbers
kernels    kernel matrices, computed results
labels     class labels
numbers    numbers, counts, flags, seeds
objects    names, choices, callables, models, devices, dtypes, paths, options
"""

from kernelmem.core.checks.arrays import ArrayLike as ArrayLike
from kernelmem.core.checks.arrays import as_array as as_array
from kernelmem.core.checks.arrays import as_dense as as_dense
from kernelmem.core.checks.arrays import as_indices as as_indices
from kernelmem.core.checks.arrays import as_tensor as as_tensor
from kernelmem.core.checks.arrays import check_finite as check_finite
from kernelmem.core.checks.arrays import check_kernel_range as check_kernel_range
from kernelmem.core.checks.kernels import as_square_kernel as as_square_kernel
from kernelmem.core.checks.kernels import check_result as check_result
from kernelmem.core.checks.labels import as_labels as as_labels
from kernelmem.core.checks.labels import renumbering_hint as renumbering_hint
from kernelmem.core.checks.numbers import as_count as as_count
from kernelmem.core.checks.numbers import as_flag as as_flag
from kernelmem.core.checks.numbers import as_number as as_number
from kernelmem.core.checks.numbers import as_seed as as_seed
from kernelmem.core.checks.numbers import seed_sequence as seed_sequence
from kernelmem.core.checks.objects import as_device as as_device
from kernelmem.core.checks.objects import as_float_dtype as as_float_dtype
from kernelmem.core.checks.objects import as_list as as_list
from kernelmem.core.checks.objects import as_names as as_names
from kernelmem.core.checks.objects import as_pair as as_pair
from kernelmem.core.checks.objects import as_path as as_path
from kernelmem.core.checks.objects import as_text as as_text
from kernelmem.core.checks.objects import check_callable as check_callable
from kernelmem.core.checks.objects import check_choice as check_choice
from kernelmem.core.checks.objects import check_instance as check_instance
from kernelmem.core.checks.objects import check_model as check_model
from kernelmem.core.checks.objects import describe as describe
