"""Tangents ∂f/∂θ per example: recorded in one forward pass, kept in factored form, contracted as a plan says.

prepare        a private copy of the user's model, in eval mode and one dtype
batch_axis     the axis of a tensor that holds the examples
capture        one forward pass that records every use of a parameter
rules/         per kind of operation: how it uses its parameters, and their tangents
groups/        parameters whose tangents are contracted together, and output directions
survey         probes that find out how a model uses its parameters
engine/        plan, backward sweeps and contraction into a kernel
derivatives/   the dense Jacobian, and products J u and Jᵀ w without it
sketch         random projections of tangents
"""

from kernelmem.tangents.derivatives.jvp import Linearized as Linearized
from kernelmem.tangents.derivatives.jvp import choose_mode as choose_mode
from kernelmem.tangents.derivatives.jvp import load_dual_rules as load_dual_rules
from kernelmem.tangents.prepare import prepare as prepare
from kernelmem.tangents.sketch import tangent_features as tangent_features
