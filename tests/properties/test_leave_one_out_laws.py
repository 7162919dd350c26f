"""Laws of leave-one-out that hold for every kernel: symmetries, scaling, agreement with refits."""

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from kernelmem.kernel_machines.model_selection.leave_one_out import leave_one_out
from tests.profiles import examples
from tests.tolerances import solving, symmetrized

few = examples(0.75)
ALL_RIDGES = (0.0, 1e-3, 0.1, 1.0)


@st.composite
def problems(draw, ridges=ALL_RIDGES, dtypes=(torch.float64,)):
    """A kernel of random features (generic, fewer than rows, or duplicated rows), labels, a ridge, a generator, a tolerance."""
    n, width = draw(st.integers(3, 12)), draw(st.integers(1, 24))
    classes = draw(st.integers(2, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    phi = torch.randn(n, width, generator=generator, dtype=torch.float64)
    phi[1] = phi[0] if draw(st.booleans()) else phi[1]
    labels = torch.randint(classes, (n,), generator=generator)
    labels[0], labels[1] = 0, classes - 1
    dtype = draw(st.sampled_from(dtypes))
    phi = phi.to(dtype)
    K, ridge = symmetrized(phi @ phi.T), draw(st.sampled_from(ridges))
    tol = bound(K, ridge)
    assume(tol < 1e-8)  # at ridge 0 the rank is beyond doubt, so that two roundings of one problem must agree
    return K, labels, ridge, generator, tol


def without(K: Tensor, out: list[int]) -> Tensor:
    """The kernel of the rows that are not left out."""
    rest = [i for i in range(len(K)) if i not in out]
    return K[rest][:, rest]


def bound(K: Tensor, ridge: float) -> float:
    """n · eps · condition of the worst system: that of all rows, or of all but one."""
    return solving(K, *(without(K, [i]) for i in range(len(K))), ridge=ridge)


def close(a: Tensor, b: Tensor, tol: float) -> bool:
    return float((a - b).abs().max()) <= tol * max(1.0, float(b.abs().max()))


def refit(K: Tensor, y: Tensor, ridge: float, out: list[int]) -> Tensor:
    rest = [i for i in range(len(K)) if i not in out]
    system = without(K, out) + ridge * torch.eye(len(rest), dtype=K.dtype)
    inverse = torch.linalg.pinv(system, rtol=1e-10, hermitian=True) if ridge == 0 else torch.linalg.inv(system)
    return K[out][:, rest] @ inverse @ y[rest]


@few
@given(problems())
def test_every_row_and_a_block_equal_refits(case):
    K, labels, ridge, generator, tol = case
    got = leave_one_out(K, labels, ridge)
    for i in range(len(K)):
        assert close(got.predictions[[i]], refit(K, got.targets, ridge, [i]), tol)
    block = torch.randperm(len(K), generator=generator)[: int(torch.randint(1, len(K), (1,), generator=generator))]
    assert close(
        got.block(block),
        refit(K, got.targets, ridge, block.tolist()),
        tol + solving(without(K, block.tolist()), ridge=ridge),
    )


@few
@given(problems(ridges=(1e-2, 0.1, 1.0), dtypes=(torch.float32,)))
def test_a_float32_kernel_equals_refits_of_its_float64_copy(case):
    K, labels, ridge, _, tol = case
    got = leave_one_out(K, labels, ridge)
    for i in range(len(K)):
        assert close(got.predictions[[i]], refit(K.double(), got.targets, ridge, [i]), tol)


@few
@given(problems())
def test_rows_may_be_permuted(case):
    K, labels, ridge, generator, tol = case
    order = torch.randperm(len(K), generator=generator)
    got, want = leave_one_out(K[order][:, order], labels[order], ridge), leave_one_out(K, labels, ridge)
    assert close(got.predictions, want.predictions[order], tol)
    assert close(got.memorization, want.memorization[order], tol)
    assert close(got.margin, want.margin[order], tol)
    assert close(got.influence(K[:, order]), want.influence(K)[:, order], tol)


@few
@given(problems(), st.sampled_from([2.0**-20, 2.0**10, 3.7, 1e-4]))
def test_scaling_kernel_and_ridge_together_changes_no_prediction(case, scale):
    K, labels, ridge, _, tol = case
    got, want = leave_one_out(scale * K, labels, scale * ridge), leave_one_out(K, labels, ridge)
    assert close(got.predictions, want.predictions, tol)
    assert close(got.memorization, want.memorization, tol)
    assert close(got.influence(scale * K), want.influence(K), tol)
    assert close(got.alpha * scale, want.alpha, tol)


@few
@given(problems())
def test_classes_may_be_renamed(case):
    K, labels, ridge, generator, tol = case
    labels = labels.unique(return_inverse=True)[1]  # no gaps, so that renaming keeps the number of classes
    classes = int(labels.max()) + 1
    names = torch.randperm(classes, generator=generator)
    got, want = leave_one_out(K, names[labels], ridge), leave_one_out(K, labels, ridge)
    assert close(got.predictions[:, names], want.predictions, tol)
    assert close(got.memorization, want.memorization, tol)
    assert close(got.margin, want.margin, tol)


@few
@given(problems())
def test_linear_in_the_targets(case):
    K, _, ridge, generator, tol = case
    y = torch.randn(len(K), 2, generator=generator, dtype=torch.float64)
    z = torch.randn(len(K), 2, generator=generator, dtype=torch.float64)
    both, one, other = (leave_one_out(K, t, ridge).predictions for t in (2 * y - z, y, z))
    assert float((both - (2 * one - other)).abs().max()) <= tol * max(
        1.0, float(one.abs().max()), float(other.abs().max())
    )


@few
@given(problems())
def test_memorization_is_leverage_times_left_out_residual(case):
    K, labels, ridge, _, tol = case
    got = leave_one_out(K, labels, ridge)
    rows = torch.arange(len(K))
    assert close((got.fitted - got.predictions)[rows, labels], got.leverage * got.errors[rows, labels], tol)
    assert close(got.memorization, got.leverage * got.errors[rows, labels], tol)
    own = got.influence(K)[rows, rows, labels]  # the influence of a row on itself is its memorization
    assert close(own, got.memorization, tol)
    assert float(got.leverage.min()) >= -tol
    assert float(got.leverage.max()) <= 1 + tol
