"""Kernels larger than memory: computed tile by tile from tangents that are kept, and written to a KernelStore.

computation   ntk_store and ntk_store_plan
run           one call: plan, tasks, results written to the store
options       StoreOptions
plan          StorePlan: tiles, operations, memory, disk and expected time
temporary_store the same for kernels in a temporary directory, which audits and accounts read in blocks
facts         hashes of the model and of the rows, which a store is compared with
inputs        model and rows as workers receive them, once each
tangent_files tangents of a block of rows as a file
worker        what a worker does: tangents of a block of rows, products of two of them
"""

from kernelmem.kernels.large.computation import ntk_store as ntk_store
from kernelmem.kernels.large.computation import ntk_store_plan as ntk_store_plan
from kernelmem.kernels.large.options import StoreOptions as StoreOptions
from kernelmem.kernels.large.plan import StorePlan as StorePlan
from kernelmem.kernels.large.worker import Worker as Worker
