"""Models of users: private copies of them, and how they are run."""

from kernelmem.core.models.execution import PassObserver as PassObserver
from kernelmem.core.models.execution import ignored_autocast as ignored_autocast
from kernelmem.core.models.execution import plain_execution as plain_execution
from kernelmem.core.models.execution import refuse_detached_segments as refuse_detached_segments
from kernelmem.core.models.execution import without_checkpointing as without_checkpointing
from kernelmem.core.models.float32 import float32_products as float32_products
from kernelmem.core.models.float32 import with_float32_products as with_float32_products
from kernelmem.core.models.private_copy import copy_module as copy_module
from kernelmem.core.models.private_copy import private_copy as private_copy
from kernelmem.core.models.private_copy import replace_complex_parameters as replace_complex_parameters
from kernelmem.core.models.saved_tensors import saved_storages as saved_storages
