"""Laws of leave-one-out that hold for every kernel: symmetries, scaling, agreement with refits."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernelmem.kernel_machines.model_selection.leave_one_out import leave_one_out

few = settings(max_examples=30, deadline=None)
ALL_RIDGES = (0.0, 1e-3, 0.1, 1.0)


@st.composite
def problems(draw, ridges=ALL_RIDGES, dtypes=(torch.float64,)):
    """Random features (generic, or fewer than rows, or with duplicated rows), labels, a ridge."""
    n, width = draw(st.integers(3, 12)), draw(st.integers(1, 24))
    classes = draw(st.integers(2, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    phi = torch.randn(n, width, generator=generator, dtype=torch.float64)
    phi[1] = phi[0] if draw(st.booleans()) else phi[1]
    labels = torch.randint(classes, (n,), generator=generator)
    labels[0], labels[1] = 0, classes - 1
    dtype = draw(st.sampled_from(dtypes))
    phi = phi.to(dtype)
    return phi @ phi.T, labels, draw(st.sampled_from(ridges)), generator


def well_posed(K: Tensor, ridge: float) -> bool:
    """Whether the rank at ridge 0 is beyond doubt, so that two roundings of one problem must agree."""
    values = torch.linalg.eigvalsh(K.double())
    doubtful = (values > 1e-12 * values[-1]) & (values < 1e-5 * values[-1])
    return ridge > 0 or not bool(doubtful.any())


def close(a: Tensor, b: Tensor, tol: float = 1e-7) -> bool:
    return float((a - b).abs().max()) <= tol * max(1.0, float(b.abs().max()))


def refit(K: Tensor, y: Tensor, ridge: float, out: list[int]) -> Tensor:
    rest = [i for i in range(len(K)) if i not in out]
    system = K[rest][:, rest] + ridge * torch.eye(len(rest), dtype=K.dtype)
    inverse = torch.linalg.pinv(system, rtol=1e-10, hermitian=True) if ridge == 0 else torch.linalg.inv(system)
    return K[out][:, rest] @ inverse @ y[rest]


@few
@given(problems())
def test_every_row_and_a_block_equal_refits(case):
    K, labels, ridge, generator = case
    got = leave_one_out(K, labels, ridge)
    if not well_posed(K, ridge):
        return
    for i in range(len(K)):
        assert close(got.predictions[[i]], refit(K, got.targets, ridge, [i]))
    block = torch.randperm(len(K), generator=generator)[: int(torch.randint(1, len(K), (1,), generator=generator))]
    assert close(got.block(block), refit(K, got.targets, ridge, block.tolist()))


@few
@given(problems(ridges=(1e-2, 0.1, 1.0), dtypes=(torch.float32,)))
def test_a_float32_kernel_equals_refits_of_its_float64_copy(case):
    K, labels, ridge, _ = case
    got = leave_one_out(K, labels, ridge)
    for i in range(len(K)):
        assert close(got.predictions[[i]], refit(K.double(), got.targets, ridge, [i]))


@few
@given(problems())
def test_rows_may_be_permuted(case):
    K, labels, ridge, generator = case
    if not well_posed(K, ridge):
        return
    order = torch.randperm(len(K), generator=generator)
    got, want = leave_one_out(K[order][:, order], labels[order], ridge), leave_one_out(K, labels, ridge)
    assert close(got.predictions, want.predictions[order])
    assert close(got.memorization, want.memorization[order])
    assert close(got.margin, want.margin[order])
    assert close(got.influence(K[:, order]), want.influence(K)[:, order])


@few
@given(problems(), st.sampled_from([2.0**-20, 2.0**10, 3.7, 1e-4]))
def test_scaling_kernel_and_ridge_together_changes_no_prediction(case, scale):
    K, labels, ridge, _ = case
    if not well_posed(K, ridge):
        return
    got, want = leave_one_out(scale * K, labels, scale * ridge), leave_one_out(K, labels, ridge)
    assert close(got.predictions, want.predictions)
    assert close(got.memorization, want.memorization)
    assert close(got.influence(scale * K), want.influence(K))
    assert close(got.alpha * scale, want.alpha)


@few
@given(problems())
def test_classes_may_be_renamed(case):
    K, labels, ridge, generator = case
    labels = labels.unique(return_inverse=True)[1]  # no gaps, so that renaming keeps the number of classes
    classes = int(labels.max()) + 1
    names = torch.randperm(classes, generator=generator)
    got, want = leave_one_out(K, names[labels], ridge), leave_one_out(K, labels, ridge)
    assert close(got.predictions[:, names], want.predictions)
    assert close(got.memorization, want.memorization)
    assert close(got.margin, want.margin)


@few
@given(problems())
def test_linear_in_the_targets(case):
    K, _, ridge, generator = case
    y = torch.randn(len(K), 2, generator=generator, dtype=torch.float64)
    z = torch.randn(len(K), 2, generator=generator, dtype=torch.float64)
    both, one, other = (leave_one_out(K, t, ridge).predictions for t in (2 * y - z, y, z))
    assert float((both - (2 * one - other)).abs().max()) <= 1e-7 * max(
        1.0, float(one.abs().max()), float(other.abs().max())
    )


@few
@given(problems())
def test_memorization_is_leverage_times_left_out_residual(case):
    K, labels, ridge, _ = case
    if not well_posed(K, ridge):
        return
    got = leave_one_out(K, labels, ridge)
    rows = torch.arange(len(K))
    assert close((got.fitted - got.predictions)[rows, labels], got.leverage * got.errors[rows, labels])
    assert close(got.memorization, got.leverage * got.errors[rows, labels])
    own = got.influence(K)[rows, rows, labels]  # the influence of a row on itself is its memorization
    assert close(own, got.memorization)
    assert float(got.leverage.min()) >= -1e-9
    assert float(got.leverage.max()) <= 1 + 1e-9
