"""Analyses of a recorded training run: ledger, influence, path kernel, exact kernel machine.

- ``ledger/``: f_T(x) − f_0(x) as a sum of contributions of training examples, groups, layers or steps, plus decay,
  rounding and buffer terms;
- ``influence/``: derivative of the trained network with respect to an example's weight, and baselines;
- ``path_kernel/``: the tangent kernel averaged along the path of the weights, and kernel machines of a run;
- ``integration/``: mean tangent of a step by adaptive Gauss-Legendre quadrature, split at kinks;
- ``network/``: the network in float64, with weights set from recorded states or given block by block;
- ``trace.py``: the recorded steps compared with the optimizer's formula;
- ``optimizers.py``: optimizers as linear filters of gradients, and their adjoints;
- ``targets.py``: functions of the outputs that are explained;
- ``argument_checks.py``: checks of the arguments that all analyses share.
"""

from kernelmem.trajectory.influence.influence import Influence as Influence
from kernelmem.trajectory.influence.influence import InfluenceOptions as InfluenceOptions
from kernelmem.trajectory.influence.influence import influence as influence
from kernelmem.trajectory.influence.influence import self_influence as self_influence
from kernelmem.trajectory.influence.replay_check import ReplayCheck as ReplayCheck
from kernelmem.trajectory.integration.quadrature import Quadrature as Quadrature
from kernelmem.trajectory.integration.quadrature import gauss_legendre as gauss_legendre
from kernelmem.trajectory.ledger.ledger import Ledger as Ledger
from kernelmem.trajectory.ledger.ledger import LedgerOptions as LedgerOptions
from kernelmem.trajectory.ledger.ledger import ledger as ledger
from kernelmem.trajectory.path_kernel.domingos_kernel_machine import DomingosKernelMachine as DomingosKernelMachine
from kernelmem.trajectory.path_kernel.domingos_kernel_machine import domingos_kernel_machine as domingos_kernel_machine
from kernelmem.trajectory.path_kernel.exact_kernel_machine import ExactKernelMachine as ExactKernelMachine
from kernelmem.trajectory.path_kernel.exact_kernel_machine import exact_kernel_machine as exact_kernel_machine
from kernelmem.trajectory.path_kernel.path_kernel import PathKernel as PathKernel
from kernelmem.trajectory.path_kernel.path_kernel import PathKernelOptions as PathKernelOptions
from kernelmem.trajectory.path_kernel.path_kernel import path_kernel as path_kernel
