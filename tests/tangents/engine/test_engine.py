"""kernelmem.tangents.engine.engine: every kind of kernel of every model of the zoo equals the definition."""

import pytest
import torch

from kernelmem.core.errors import UnsupportedModelError
from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk
from kernelmem.testing.closeness import assert_close, scale_of
from tests.tangents.engine.zoo_cases import ENTRIES, KINDS, WARNINGS, every, known

pytestmark = WARNINGS
# Parameters one by one up to so many, otherwise every fourth together; `make soak`: always one by one.
FEW_PARAMETERS = 6


def check(name, dtype, tolerance, pairs):
    """Compare kernels of (kind, whether y is given) with the definition in float64."""
    _, left, right = known(name)
    case = ENTRIES[name].case(dtype=dtype)
    for outputs, is_given in pairs:
        found = ntk(case.model, case.x, case.y if is_given else None, outputs=outputs, verify=False)
        assert found.dtype == dtype
        other = right if is_given else left
        what = f"{outputs}, {'y given' if is_given else 'y=None'}"
        assert_close(found, reference.kernel_of(left, other, outputs), tolerance, scale_of(left, other), what)


@every
def test_equals_the_reference(name):
    """Every kind; those of the trace are compared when they are verified."""
    check(name, torch.float64, 1e-10, [(outputs, y) for outputs in KINDS if outputs != "trace" for y in (False, True)])


@every
def test_equals_the_reference_in_float32(name):
    """Every kind once: what follows float64 in another dtype."""
    check(name, torch.float32, 1e-4, [("trace", True), ("diagonal", False), ("full", True), ("pseudo", False)])


@pytest.mark.soak
@every
def test_all_equal_the_reference_in_float32(name):
    check(name, torch.float32, 1e-4, [(outputs, is_given) for outputs in KINDS for is_given in (False, True)])


@every
def test_is_verified(name):
    case, left, right = known(name)
    assert_close(ntk(case.model, case.x), reference.kernel_of(left, left), 1e-10, scale_of(left), "y=None")
    assert_close(ntk(case.model, case.x, case.y), reference.kernel_of(left, right), 1e-10, scale_of(left, right), "y")


@every
def test_some_parameters_alone(name):
    """Frozen neighbors change what is tracked, and in transformer layers which path torch takes."""
    n_parameters = len(list(known(name)[0].model.parameters()))
    check_groups(name, n_parameters if n_parameters <= FEW_PARAMETERS else 4)


@pytest.mark.soak
@every
def test_each_parameter_alone(name):
    check_groups(name, len(list(known(name)[0].model.parameters())))


def check_groups(name, n_groups):
    """The kernel of every group of parameters, one from each stretch of ``n_groups``, and the sum over the groups."""
    case, left, right = known(name)
    parameters = list(case.model.named_parameters())
    sizes = [value.numel() for _, value in parameters]
    total = torch.zeros(len(case.x), len(case.y), dtype=torch.float64)
    for group in range(n_groups):
        a, b = (torch.cat(J.split(sizes, dim=-1)[group::n_groups], -1) for J in (left, right))
        names = [parameter for parameter, _ in parameters[group::n_groups]]
        try:
            found = ntk(case.model, case.x, case.y, parameters=names, verify=False)
        except UnsupportedModelError:  # the outputs do not depend on it
            assert not bool(a.any())
            continue
        assert_close(found, reference.kernel_of(a, b), 1e-10, scale_of(a, b), ", ".join(names))
        total += found
    assert_close(total, reference.kernel_of(left, right), 1e-10, scale_of(left, right), "sum over parameters")
