"""Kernels of a network: empirical and infinite-width neural tangent kernels, and statistics of kernel matrices.

ntk            the empirical neural tangent kernel, exactly, and the plan of its computation
operator       products with a tangent kernel that is never formed
reference      the slow definition that the fast code is compared with
verification   a few rows of a kernel, compared with the definition before a long run
infinite       kernels of infinitely wide fully connected networks, in closed form
spectrum       eigenvalues: condition, effective dimension, decay
large          the tangent kernel of more rows than fit in memory, into a store
store          a kernel matrix in a file, larger than memory if need be
alignment      similarity and distance of two kernels, or of a kernel and labels
"""

from kernelmem.kernels.alignment import AlignmentEstimate as AlignmentEstimate
from kernelmem.kernels.alignment import alignment as alignment
from kernelmem.kernels.alignment import centered_alignment as centered_alignment
from kernelmem.kernels.alignment import centered_target_alignment as centered_target_alignment
from kernelmem.kernels.alignment import debiased_alignment as debiased_alignment
from kernelmem.kernels.alignment import kernel_distance as kernel_distance
from kernelmem.kernels.alignment import relative_distance as relative_distance
from kernelmem.kernels.alignment import target_alignment as target_alignment
from kernelmem.kernels.infinite import infinite_nngp as infinite_nngp
from kernelmem.kernels.infinite import infinite_ntk as infinite_ntk
from kernelmem.kernels.large import StoreOptions as StoreOptions
from kernelmem.kernels.large import StorePlan as StorePlan
from kernelmem.kernels.large import ntk_store as ntk_store
from kernelmem.kernels.large import ntk_store_plan as ntk_store_plan
from kernelmem.kernels.ntk import ntk as ntk
from kernelmem.kernels.ntk import ntk_plan as ntk_plan
from kernelmem.kernels.operator import NTKOperator as NTKOperator
from kernelmem.kernels.operator import ntk_operator as ntk_operator
from kernelmem.kernels.spectrum import PowerLaw as PowerLaw
from kernelmem.kernels.spectrum import Spectrum as Spectrum
from kernelmem.kernels.spectrum import spectrum as spectrum
from kernelmem.kernels.store import KernelStore as KernelStore
from kernelmem.tangents.engine.plan import Plan as Plan
