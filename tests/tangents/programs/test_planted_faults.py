"""The power of the certificate: faults planted into the engine are found, in random networks."""

from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kernelmem.core.errors import KernelmemError
from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk
from kernelmem.testing.closeness import assert_close, scale_of
from tests.profiles import examples
from tests.tangents.programs.block import parameter
from tests.tangents.programs.faults import FAULTS
from tests.tangents.programs.program import definition, programs

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

KINDS = ("trace", "trace", "diagonal", "full", "pseudo")


def right_or_refused(program, fault, name, y, outputs, options):
    """Assert that the kernel with a planted fault is right or refused; the fault acts in passes of ``program.n`` rows."""
    left = definition(program.model, program.x)[1].double()
    right = left if y is None else definition(program.model, y)[1].double()
    with pytest.MonkeyPatch.context() as patch:
        FAULTS[fault](patch, name, program.n)
        try:
            K = ntk(program.model, program.x, y, outputs=outputs, **options)
        except KernelmemError:
            return
    # The certificate compares sums over rows: the share of one row is 1/√n of it, hence 1e-3 in float32.
    tolerance = 1e-8 if program.dtype == torch.float64 else 1e-3
    assert_close(K, reference.kernel_of(left, right, outputs), tolerance, scale_of(left, right), fault)


@examples(1)
@given(
    program=programs(rows=(4, 12)),
    fault=st.sampled_from(tuple(FAULTS)),
    which=st.integers(0, 20),
    outputs=st.sampled_from(KINDS),
    m=st.sampled_from([0, 0, 3, 13]),
    single=st.booleans(),
)
def test_a_planted_fault_is_found(program, fault, which, outputs, m, single):
    program = program.in_float32() if single and "in_autocast" not in program.blocks else program
    names = [name for name, p in program.model.named_parameters() if p.requires_grad]
    if names:
        y = program.inputs(m, stream=1) if m else None
        right_or_refused(program, fault, names[which % len(names)], y, outputs, {})


class Network(nn.Module):
    """A network in which every fault has an effect: rows and tokens, a layer called twice, a product without a rule."""

    def __init__(self, C, dense):
        super().__init__()
        self.embedding, self.inner, self.last = nn.Embedding(6, 5), nn.Linear(5, 5), nn.Linear(5, C)
        self.free, self.dense = parameter(5), dense

    def forward(self, ids):
        h = self.inner(self.inner(self.embedding(ids)).tanh()).tanh().sum(1)
        return self.last(
            torch.linalg.solve(2 * torch.eye(5, dtype=h.dtype) + self.free.diag(), h.T).T if self.dense else h
        )


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_an_effect(fault):
    """Without the certificate the kernel is wrong: the faults are where the engine computes."""
    dense = fault.startswith("dense")
    torch.manual_seed(0)
    model, ids = Network(3, dense).double(), torch.randint(6, (5, 5), generator=torch.Generator().manual_seed(0))
    nn.init.ones_(model.free)
    J = definition(model, ids)[1]
    wrong = 0
    for outputs in ("trace", "full"):
        for name in ("inner.weight", "embedding.weight")[: 1 if dense else 2]:
            with pytest.MonkeyPatch.context() as patch:
                FAULTS[fault](patch, name, len(ids))
                with suppress(KernelmemError):
                    K = ntk(model, ids, outputs=outputs, verify=False)
                    wrong += float((K - reference.kernel_of(J, J, outputs)).abs().max()) > 1e-8 * scale_of(J)
                with suppress(KernelmemError):
                    K = ntk(model, ids, outputs=outputs)
                    assert_close(K, reference.kernel_of(J, J, outputs), 1e-8, scale_of(J), fault)
    assert wrong
