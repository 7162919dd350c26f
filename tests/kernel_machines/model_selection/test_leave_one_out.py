"""Tests of leave_one_out: equality with literal refits, input checks."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from torch import Tensor

from kernelmem.core.errors import InputError, NumericalError
from kernelmem.kernel_machines.model_selection.leave_one_out import leave_one_out
from tests.tolerances import solving, symmetrized

EPS = torch.finfo(torch.float64).eps
RIDGES = [0.0, 1e-8, 1e-2, 1.0]
KERNELS = ["regular", "low rank", "duplicates", "low rank and duplicates", "one free row", "full features"]
M = 4  # test rows


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(kind: str, n: int, seed: int = 0) -> Tensor:
    """Rows whose inner products are the kernel: n training rows, then M test rows."""
    width = {"low rank": n // 3, "low rank and duplicates": n // 3, "one free row": n // 3}.get(kind, 2 * n)
    phi = normal(n + M, width, seed=seed) / width**0.5
    if "duplicates" in kind:
        phi[1], phi[5], phi[6] = phi[0], phi[3], phi[3]
    if kind == "one free row":  # row 2 alone spans its direction: its null weight is zero, those of the others are not
        phi = torch.cat([phi, torch.zeros(n + M, 1, dtype=phi.dtype)], 1)
        phi[2], phi[2, -1], phi[n, -1] = 0.3 * phi[2], 1.0, 0.5
    return phi


def problem(kind: str, n: int = 18, c: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The kernel (n, n), the test kernel (M, n), labels with 0 and 1 on rows 0 and 1, real targets (n, c)."""
    phi = features(kind, n, seed)
    labels = torch.arange(n) % c  # rows 0 and 1, duplicates in some kernels, disagree
    return symmetrized(phi[:n] @ phi[:n].T), phi[n:] @ phi[:n].T, labels, normal(n, c, seed=seed + 1)


def refit(K: Tensor, y: Tensor, ridge: float, out: list[int], K_test: Tensor) -> tuple[Tensor, Tensor]:
    """Fit without the rows ``out``; predict these rows, and the test rows."""
    rest = [i for i in range(len(K)) if i not in out]
    system = K[rest][:, rest] + ridge * torch.eye(len(rest), dtype=K.dtype)
    alpha = (
        torch.linalg.pinv(system, rtol=1e-11, hermitian=True) @ y[rest]
        if ridge == 0
        else torch.linalg.solve(system, y[rest])
    )
    return K[out][:, rest] @ alpha, K_test[:, rest] @ alpha


def tolerance(K: Tensor, ridge: float, block: Sequence[int] = ()) -> float:
    """Rounding of the worst system: of all rows, of all but one, of all but the block."""
    kept = [[i for i in range(len(K)) if i not in out] for out in ([], block, *([i] for i in range(len(K))))]
    return solving(*(K[rest][:, rest] for rest in kept), ridge=ridge, rank=1e-11)


def assert_close(a: Tensor, b: Tensor, tol: float) -> None:
    assert a.shape == b.shape
    assert a.dtype == torch.float64
    assert float((a - b).abs().max()) <= tol * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("ridge", RIDGES)
@pytest.mark.parametrize("kind", KERNELS)
def test_predictions_and_influence_equal_literal_refits(kind, ridge):
    K, K_test, _, y = problem(kind)
    got, tol = leave_one_out(K, y, ridge), tolerance(K, ridge)
    influence = got.influence(K_test)
    everyone = refit(K, y, ridge, [], K_test)[1]
    assert_close(got.predict(K_test), everyone, tol)
    for i in range(len(K)):
        own, test = refit(K, y, ridge, [i], K_test)
        assert_close(got.predictions[[i]], own, tol)
        assert_close(influence[:, i], everyone - test, tol)
    assert_close(got.errors, got.targets - got.predictions, 1e-14)
    assert got.residual < tol


@pytest.mark.parametrize("ridge", RIDGES)
@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("block", [[2], [1, 0], [3, 5, 6], [3, 5], [0, 1, 2, 3, 9], list(range(14)), list(range(17))])
def test_blocks_equal_literal_refits(kind, ridge, block):
    K, K_test, _, y = problem(kind)
    got = leave_one_out(K, y, ridge)
    assert_close(got.block(block), refit(K, y, ridge, block, K_test)[0], tolerance(K, ridge, block))
    assert_close(got.block(np.array(block[:1])), got.predictions[block[:1]], tolerance(K, ridge))


@pytest.mark.parametrize("ridge", RIDGES)
@pytest.mark.parametrize("kind", KERNELS)
def test_memorization_and_margin_equal_literal_refits(kind, ridge):
    K, K_test, labels, _ = problem(kind)
    got, tol = leave_one_out(K, labels, ridge), tolerance(K, ridge)
    y = torch.nn.functional.one_hot(labels).double() - 1 / 3
    assert_close(got.targets, y, 1e-15)
    with_all = K @ got.alpha
    for i, label in enumerate(labels.tolist()):
        without = refit(K, y, ridge, [i], K_test)[0][0]
        others = [k for k in range(3) if k != label]
        assert abs(got.memorization[i] - (with_all[i, label] - without[label])) <= 10 * tol
        assert abs(got.margin[i] - (without[label] - without[others].max())) <= 10 * tol
    rows = torch.arange(len(K))
    product = (got.leverage[:, None] * got.errors)[rows, labels]
    assert_close(got.memorization, product, 1e-14)
    assert_close(got.fitted - got.predictions, got.leverage[:, None] * got.errors, tol)
    assert_close(got.memorization, (got.fitted - got.predictions)[rows, labels], tol)


@pytest.mark.parametrize("ridge", [0.0, 1e-2])
def test_a_row_duplicated_with_another_label_is_predicted_as_its_twin(ridge):
    K, _, labels, _ = problem("duplicates", n=30)
    got = leave_one_out(K, labels, ridge)
    assert int(got.predictions[0].argmax()) == int(labels[1])
    assert int(got.predictions[1].argmax()) == int(labels[0])
    assert float(got.margin[0]) < 0


def test_leverage_is_the_diagonal_of_the_hat_matrix_and_sums_to_the_rank():
    K, _, labels, _ = problem("low rank")
    assert float(leave_one_out(K, labels, 0).leverage.sum()) == pytest.approx(6, abs=1e-10)
    hat = K @ torch.linalg.inv(K + 0.3 * torch.eye(18, dtype=K.dtype))
    assert_close(leave_one_out(K, labels, 0.3).leverage, hat.diagonal(), 1e-13)


def test_large_ridge_leaves_nothing_to_memorize():
    K, _, labels, _ = problem("regular")
    assert float(leave_one_out(K, labels, 1e9).memorization.abs().max()) < 1e-8


def test_float32_kernel_is_computed_in_float64():
    K, K_test, labels, y = problem("regular")
    single = K.float()
    for ridge in RIDGES:
        want = leave_one_out(single.double(), y, ridge)
        got = leave_one_out(single.numpy(), y.float().double().numpy(), ridge)
        assert got.predictions.dtype == got.influence(K_test.float()).dtype == torch.float64
        assert_close(got.predictions, want.predictions, 1e-5)
    assert_close(
        leave_one_out(single, labels, 1e-2).memorization,
        leave_one_out(single.double(), labels, 1e-2).memorization,
        1e-12,
    )


@pytest.mark.parametrize("kind", KERNELS[1:])
def test_ridge_zero_sees_the_rank_through_float32_rounding(kind):
    phi = features(kind, 18).float()
    labels = torch.arange(18) % 3
    exact = phi.double()
    want = leave_one_out(exact[:18] @ exact[:18].T, labels, 0)
    got = leave_one_out(phi[:18] @ phi[:18].T, labels, 0)
    if kind != "duplicates" and kind != "full features":
        assert float(got.leverage.sum()) == pytest.approx(float(want.leverage.sum()), abs=1e-4)
    assert_close(got.predictions, want.predictions, 1e-3)
    assert_close(got.block([0, 2, 3]), want.block([0, 2, 3]), 1e-3)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("cast", [False, True])
def test_ridge_zero_takes_no_rounding_for_data(seed, cast):
    # Rounding makes a null eigenvalue negative or positive. The dtype float32 says how large it may be; after
    # a cast to float64 only negative eigenvalues do, which a null space of several dimensions always has.
    phi = features("low rank" if cast else "regular", 18, seed=seed)[:18].float()
    phi[2] = phi[0] + phi[1]
    labels, exact = torch.arange(18) % 3, symmetrized(phi.double() @ phi.double().T)
    single = exact.float()  # not phi @ phi.T, whose rounding is that of one processor
    got = leave_one_out(single.double() if cast else single, labels, 0)
    assert_close(got.predictions, leave_one_out(exact, labels, 0).predictions, 1e-2)


@pytest.mark.parametrize("seed", range(4))
def test_a_row_that_leaks_into_the_null_space_by_rounding_is_not_taken_for_a_null_row(seed):
    phi = features("one free row", 18, seed=seed)[:18]
    phi[2, -1] = 0.1
    phi, labels = phi.float(), torch.arange(18) % 3
    want = leave_one_out(phi.double() @ phi.double().T, labels, 0)
    got = leave_one_out(phi @ phi.T, labels, 0)
    assert_close(got.predictions[2], want.predictions[2], 1e-2)
    assert_close(got.block([2]), want.block([2]), 1e-2)
    assert_close(got.block([2, 4]), want.block([2, 4]), 1e-2)


def test_agrees_with_scikit_learn():
    K, K_test, _, y = problem("regular")
    peer = KernelRidge(alpha=0.1, kernel="precomputed").fit(K.numpy(), y.numpy())
    got = leave_one_out(K, y, 0.1)
    assert_close(got.alpha, torch.from_numpy(peer.dual_coef_), 1e-12)
    assert_close(got.predict(K_test), torch.from_numpy(peer.predict(K_test.numpy())), 1e-12)
    keep = [i for i in range(18) if i != 7]
    peer.fit(K[keep][:, keep].numpy(), y[keep].numpy())
    assert_close(got.predictions[[7]], torch.from_numpy(peer.predict(K[[7]][:, keep].numpy())), 1e-12)


def test_more_rows_than_one_panel_of_the_diagonal():
    K, _, _, y = problem("low rank", n=600)
    got = leave_one_out(K, y, 0.2)
    inverse = torch.linalg.inv(K + 0.2 * torch.eye(600, dtype=K.dtype))
    assert_close(got.leverage, 1 - 0.2 * inverse.diagonal(), 1e-12)


def test_targets_that_count_as_labels():
    K, _, labels, y = problem("regular")
    one_hot = torch.nn.functional.one_hot(labels)
    want = leave_one_out(K, labels, 0.1)
    for same in (one_hot.double() - 1 / 3, one_hot.float() - 1 / 3, (one_hot.double() - 1 / 3).numpy()):
        got = leave_one_out(K, same, 0.1)
        assert got.labels is not None
        assert got.labels.tolist() == labels.tolist()
        assert_close(got.memorization, want.memorization, 1e-6)
    shifted = leave_one_out(K, one_hot, 0.1)  # targets as given: without intercept, a constant is part of the function
    assert shifted.labels is not None
    assert_close(shifted.targets, one_hot.double(), 0)
    for real in (
        labels.double(),
        y,
        one_hot * 2.0,
        one_hot + torch.arange(18)[:, None],
        y[:, :1],
        one_hot.double() * -1,
    ):
        got = leave_one_out(K, real, 0.1)
        assert got.labels is None
        assert got.predictions.shape == (18, real.shape[1] if real.ndim == 2 else 1)
        with pytest.raises(InputError, match="memorization"):
            got.memorization
        with pytest.raises(InputError, match="margin"):
            got.margin


def test_gaps_in_the_classes_and_two_classes():
    K, _, labels, _ = problem("regular")
    assert leave_one_out(K, labels * 2, 0.1).predictions.shape == (18, 5)
    assert leave_one_out(K, (labels > 0).int(), 0.1).predictions.shape == (18, 2)
    assert leave_one_out(K, labels > 0, 0.1).predictions.shape == (18, 2)


def test_zero_kernel_and_zero_targets():
    zero = torch.zeros(4, 4)
    labels = [0, 1, 0, 1]
    for ridge in (0, 1.0):
        got = leave_one_out(zero, labels, ridge)
        assert float(got.predictions.abs().max()) == 0
        assert float(got.memorization.abs().max()) == 0
    got = leave_one_out(torch.eye(4), torch.zeros(4), 1.0)
    assert got.residual == 0
    assert got.predictions.shape == (4, 1)


def test_the_kernel_is_not_changed_and_the_result_is_frozen():
    K, _, labels, _ = problem("regular")
    before = K.clone()
    for ridge in (0, 0.5):
        got = leave_one_out(K, labels, ridge)
        got.block([0, 3])
        with pytest.raises(dataclasses.FrozenInstanceError):
            got.ridge = 2.0  # type: ignore[misc]
    assert torch.equal(K, before)
    assert "ridge 0.5" in repr(got)
    assert len(repr(got)) < 500


@pytest.mark.parametrize("ridge", RIDGES)
def test_condition_is_near_the_condition_number(ridge):
    K, _, labels, _ = problem("low rank", n=60)
    values = torch.linalg.eigvalsh(K)
    true = float(values[-1] / values[40]) if ridge == 0 else float((values[-1] + ridge) / (values[0] + ridge))
    assert 0.5 * true <= leave_one_out(K, labels, ridge).condition <= true * (1 + 1e-6)


def test_indefinite_kernel_is_refused_with_its_smallest_eigenvalue():
    U = torch.linalg.qr(normal(8, 8, seed=3))[0]
    values = torch.tensor([-0.25, 1, 1, 2, 2, 3, 4, 5], dtype=torch.float64)
    K = U @ (values[:, None] * U.T)
    for ridge in (0, 1e-8, 0.1):
        with pytest.raises(NumericalError, match=r"-0\.25.*Hint: .*ridge"):
            leave_one_out(K, [0, 1] * 4, ridge)


def test_rounding_of_a_float32_kernel_is_not_indefiniteness_at_ridge_zero():
    phi = normal(40, 5, seed=1).float()
    K = phi @ phi.T
    assert float(torch.linalg.eigvalsh(K.double())[0]) < -1e-9
    leave_one_out(K, torch.arange(40) % 2, 0)
    leave_one_out(K.double(), torch.arange(40) % 2, 0)
    with pytest.raises(NumericalError, match="smallest eigenvalue"):
        leave_one_out(K, torch.arange(40) % 2, 1e-9)


def test_a_ridge_lost_in_rounding_is_refused():
    K, _, labels, _ = problem("low rank")
    with pytest.raises(NumericalError, match="ridge=0"):
        leave_one_out(1e6 * K, labels, 1e-11)
    with pytest.raises(NumericalError, match="ridge=0"):  # the last pivot is eps, positive by luck
        leave_one_out(torch.ones(2, 2), [0, 1], 2.3e-16)


EYE = torch.eye(4)
LABELS = [0, 1, 0, 1]


@pytest.mark.parametrize("ridge", [-1.0, float("nan"), float("inf"), [1.0], "1", None, True, torch.ones(2), 1j])
def test_bad_ridge(ridge):
    with pytest.raises(InputError, match=r"Got ridge=.*; expected .*. Hint: "):
        leave_one_out(EYE, LABELS, ridge)


@pytest.mark.parametrize("ridge", [1, np.float32(0.5), torch.tensor(0.5), np.int64(2), np.array(0.5)])
def test_good_ridge(ridge):
    assert leave_one_out(EYE, LABELS, ridge).ridge == float(ridge)


@pytest.mark.parametrize(
    ("y", "match"),
    [
        ([0, 1, 0], "4"),
        (torch.zeros(3, 2), "4"),
        ([1, 1, 1, 1], "one class"),
        ([0, 0, 0, 0], "one class"),
        (torch.tensor([[0.0, 1.0]] * 4), "one class"),
        ([0, 1, -1, 0], "outside"),
        ([0.0, float("nan"), 1.0, 0.0], "NaN"),
        (torch.zeros(4, 0), "shape"),
        (torch.zeros(4, 2, 2), "shape"),
        (torch.zeros(()), "shape"),
        (torch.zeros(4, dtype=torch.complex64), "complex"),
        (["a", "b", "a", "b"], "numbers"),
    ],
)
def test_bad_y(y, match):
    with pytest.raises(InputError, match=rf"(?s)Got .*{match}"):
        leave_one_out(EYE, y, 1.0)


@pytest.mark.parametrize(
    ("kernel", "error"),
    [
        (torch.ones(1, 1), InputError),
        (torch.ones(4, 3), InputError),
        (torch.ones(4), InputError),
        (torch.full((4, 4), float("nan")), InputError),
        (torch.triu(torch.ones(4, 4)), NumericalError),
    ],
)
def test_bad_kernel(kernel, error):
    with pytest.raises(error, match=r"Got .*; expected .*. Hint: "):
        leave_one_out(kernel, LABELS, 1.0)


@pytest.mark.parametrize(
    "indices",
    [[], [0, 0], [4], [-1], [0, 1, 2, 3], [0.0, 1.0], [[0, 1]], 2, [True, False, True, False], [0, None]],
)
@pytest.mark.parametrize("ridge", [0, 1.0])
def test_bad_block(indices, ridge):
    with pytest.raises(InputError, match=r"Got indices.*; expected .*. Hint: "):
        leave_one_out(EYE, LABELS, ridge).block(indices)


@pytest.mark.parametrize(
    "K_test", [torch.ones(4), torch.ones(2, 3), torch.full((2, 4), float("inf")), torch.ones(4, 2)]
)
@pytest.mark.parametrize("verb", ["influence", "predict"])
def test_bad_k_test(K_test, verb):
    with pytest.raises(InputError, match=r"Got K_test.*; expected .*. Hint: "):
        getattr(leave_one_out(EYE, LABELS, 1.0), verb)(K_test)
