"""Laws of label corruption: number of changed labels, target classes, transition matrix, seed."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from kernelmem.core.errors import InputError
from kernelmem.label_noise import sampling as draws
from kernelmem.label_noise import transition_matrices as transitions
from kernelmem.label_noise.corrupt import KINDS, corrupt_labels
from tests.profiles import examples

COUNTED = ("symmetric", "pair", "instance", "matrix")  # and "confusable", which is tested apart: it is slower
SIGMAS = 5.0


def labels_of(n, n_classes, seed=0):
    y = np.random.default_rng(seed).integers(0, n_classes, n)
    y[:n_classes] = np.arange(n_classes)
    return torch.from_numpy(y)


def features_of(y, dim=5, seed=1):
    """Gaussian classes on a line in class order 0, 1, ..., so that neighbors are confused."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(len(y), dim))
    x[:, 0] += 3.0 * y.numpy()
    return x


def matrix_of(n_classes, seed=0):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(n_classes), n_classes)


def arguments(kind, y, rate):
    """Call ``corrupt_labels`` needs for ``kind``, with a matrix whose rate is ``rate``."""
    n_classes = int(y.max()) + 1
    if kind == "matrix":
        off = matrix_of(n_classes)
        np.fill_diagonal(off, 0.0)
        return {"matrix": (1 - rate) * np.eye(n_classes) + rate * off / off.sum(1, keepdims=True)}
    return {"x": features_of(y)} if kind in ("confusable", "instance") else {}


def rows_of(result, y):
    """The (n, C) law of each noisy label."""
    return result.matrix if len(result.matrix) == len(y) else result.matrix[y]


sizes = st.integers(2, 200)
class_counts = st.integers(2, 8)
rates = st.floats(0, 1)
seeds = st.integers(0, 2**40)


# ---- what every kind keeps -----------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_result_has_the_documented_types_range_and_mask(kind, exact):
    y = labels_of(120, 4)
    before = y.clone()
    result = corrupt_labels(y, 0.3, kind, seed=3, exact=exact, **arguments(kind, y, 0.3))
    noisy, flipped, matrix = result.y, result.flipped, result.matrix
    assert noisy.dtype == torch.int64
    assert flipped.dtype == torch.bool
    assert matrix.dtype == torch.float64
    assert noisy.shape == flipped.shape == (120,)
    assert matrix.shape == ((120, 4) if kind == "instance" else (4, 4))
    assert torch.equal(flipped, noisy != y)
    assert int(noisy.min()) >= 0
    assert int(noisy.max()) < 4
    assert flipped.any()
    assert not flipped.all()
    assert torch.equal(y, before)
    assert bool((matrix >= 0).all())
    torch.testing.assert_close(matrix.sum(1), torch.ones(len(matrix), dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_rate_zero_is_the_identity(kind, exact):
    y = labels_of(60, 3)
    result = corrupt_labels(y, 0, kind, seed=3, exact=exact, **arguments(kind, y, 0.0))
    assert torch.equal(result.y, y)
    assert not result.flipped.any()
    identity = torch.eye(3, dtype=torch.float64)
    assert torch.equal(result.matrix, identity[y] if kind == "instance" else identity)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "uniform"])
def test_rate_one_changes_every_label(kind, exact):
    y = labels_of(60, 3)
    result = corrupt_labels(y, 1, kind, seed=3, exact=exact, **arguments(kind, y, 1.0))
    assert result.flipped.all()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_seed_decides_and_the_global_state_does_not(kind, exact):
    y = labels_of(150, 4)
    more = arguments(kind, y, 0.4)
    first = corrupt_labels(y, 0.4, kind, seed=11, exact=exact, **more)
    torch.manual_seed(99)
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002 - it is the global state that is looked at
    again = corrupt_labels(y.numpy(), 0.4, kind, seed=11, exact=exact, **more)
    other = corrupt_labels(y, 0.4, kind, seed=12, exact=exact, **more)
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in ("y", "flipped", "matrix"))
    assert not torch.equal(first.y, other.y)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("kind", KINDS)
def test_empirical_law_is_the_matrix(kind):
    """Pool 40 seeds: the count of every (true, noisy) pair lies within 5 sigma of what the matrices say."""
    y = labels_of(300, 3)
    more = arguments(kind, y, 0.3)
    for exact in (True, False):
        seen, expected, variance = (np.zeros((3, 3)) for _ in range(3))
        for seed in range(40):
            result = corrupt_labels(y, 0.3, kind, seed=seed, exact=exact, **more)
            rows = rows_of(result, y).numpy()
            np.add.at(seen, (y.numpy(), result.y.numpy()), 1)
            np.add.at(expected, y.numpy(), rows)
            np.add.at(variance, y.numpy(), rows * (1 - rows))
        assert np.all(np.abs(seen - expected) <= SIGMAS * np.sqrt(variance) + 1e-9), (exact, seen, expected)


# ---- exact and i.i.d. counts ---------------------------------------------------------------------------


@examples(1.5)
@given(
    n=sizes,
    n_classes=class_counts,
    rate=rates,
    seed=seeds,
    kind=st.sampled_from(COUNTED),
)
def test_exact_flips_exactly_round_rate_n(n, n_classes, rate, seed, kind):
    assume(n >= n_classes)
    y = labels_of(n, n_classes, seed)
    result = corrupt_labels(y, rate, kind, seed=seed, **arguments(kind, y, rate))
    assert int(result.flipped.sum()) == round(rate * n)


@examples(1)
@given(n=sizes, n_classes=class_counts, rate=rates, seed=seeds)
def test_uniform_exact_redraws_round_rate_n_rows_of_which_some_stay(n, n_classes, rate, seed):
    assume(n >= n_classes)
    y = labels_of(n, n_classes, seed)
    assert int(corrupt_labels(y, rate, "uniform", seed=seed).flipped.sum()) <= round(rate * n)


def test_uniform_exact_changes_the_share_c_minus_1_over_c_of_the_redrawn_rows():
    y = labels_of(4000, 4)
    changed = int(corrupt_labels(y, 0.5, "uniform", seed=0).flipped.sum())
    assert changed != 2000
    assert abs(changed - 2000 * 3 / 4) <= SIGMAS * math.sqrt(2000 * 3 / 16)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "confusable"])
def test_independent_flips_hit_the_rate_within_binomial_bounds(kind, rate):
    n, n_classes = 6000, 5
    y = labels_of(n, n_classes)
    counts = [
        int(corrupt_labels(y, rate, kind, seed=s, exact=False, **arguments(kind, y, rate)).flipped.sum())
        for s in range(3)
    ]
    effective = rate * (n_classes - 1) / n_classes if kind == "uniform" else rate
    sigma = math.sqrt(n * effective * (1 - effective))
    assert all(abs(count - n * effective) <= SIGMAS * sigma for count in counts), (counts, n * effective)
    assert len(set(counts)) > 1, "independent draws have a random count"


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", ["symmetric", "pair", "confusable"])
def test_flips_of_a_lower_rate_are_among_those_of_a_higher_rate(kind, exact):
    y = labels_of(200, 4)
    more = arguments(kind, y, 0.1)
    low = corrupt_labels(y, 0.1, kind, seed=5, exact=exact, **more)
    high = corrupt_labels(y, 0.4, kind, seed=5, exact=exact, **more)
    assert bool((high.flipped | ~low.flipped).all())
    assert torch.equal(high.y[low.flipped], low.y[low.flipped])


def test_permuting_the_rows_keeps_the_matrix_and_the_count():
    y = labels_of(200, 4)
    order = torch.from_numpy(np.random.default_rng(0).permutation(200))
    for kind in ("symmetric", "uniform", "pair", "confusable", "matrix"):
        more = arguments(kind, y, 0.25)
        moved = {k: v[order.numpy()] if k == "x" else v for k, v in more.items()}
        a = corrupt_labels(y, 0.25, kind, seed=1, **more)
        b = corrupt_labels(y[order], 0.25, kind, seed=1, **moved)
        torch.testing.assert_close(a.matrix, b.matrix, rtol=0, atol=1e-15)
        if kind != "uniform":
            assert int(a.flipped.sum()) == int(b.flipped.sum()) == 50


# ---- the single kinds ----------------------------------------------------------------------------------


@examples(1)
@given(n_classes=class_counts, rate=rates, exact=st.booleans(), seed=seeds)
def test_symmetric_never_draws_the_true_label_and_has_its_matrix(n_classes, rate, exact, seed):
    y = labels_of(50, n_classes, seed)
    result = corrupt_labels(y, rate, seed=seed, exact=exact)
    expected = np.full((n_classes, n_classes), rate / (n_classes - 1))
    np.fill_diagonal(expected, 1 - rate)
    np.testing.assert_allclose(result.matrix.numpy(), expected, rtol=0, atol=1e-15)
    if rate == 1:
        assert result.flipped.all()


@pytest.mark.parametrize(("rate", "n_classes"), [(0.1, 10), (0.4, 3), (0.5, 2), (0.9, 10)])
def test_entropy_of_symmetric_noise_is_the_known_answer(rate, n_classes):
    matrix = corrupt_labels(labels_of(50, n_classes), rate, seed=0).matrix
    bits = -(torch.special.xlogy(matrix, matrix)).sum(1) / math.log(2)
    known = -rate * math.log2(rate) - (1 - rate) * math.log2(1 - rate) + rate * math.log2(n_classes - 1)
    np.testing.assert_allclose(bits.numpy(), known, rtol=1e-12)


def test_uniform_has_its_matrix_and_sometimes_keeps_the_label():
    matrix = corrupt_labels(labels_of(50, 5), 0.6, "uniform", seed=0).matrix
    np.testing.assert_allclose(matrix.numpy(), 0.4 * np.eye(5) + 0.6 / 5, atol=1e-15)
    assert not corrupt_labels(labels_of(500, 5), 1.0, "uniform", seed=0).flipped.all()


@examples(1)
@given(n_classes=class_counts, rate=rates, exact=st.booleans(), seed=seeds)
def test_pair_moves_to_the_next_class(n_classes, rate, exact, seed):
    y = labels_of(50, n_classes, seed)
    result = corrupt_labels(y, rate, "pair", seed=seed, exact=exact)
    assert torch.equal(result.y[result.flipped], (y[result.flipped] + 1) % n_classes)
    expected = (1 - rate) * np.eye(n_classes) + rate * np.roll(np.eye(n_classes), 1, axis=1)
    np.testing.assert_allclose(result.matrix.numpy(), expected, rtol=0, atol=1e-15)


def test_confusable_moves_to_the_class_that_lies_nearest():
    """Four Gaussian classes: 0 beside 2, and 1 beside 3, far from each other."""
    y = labels_of(160, 4)
    centers = np.array([[0, 0], [20, 0], [0, 2], [20, 2]], dtype=float)
    x = centers[y.numpy()] + np.random.default_rng(2).normal(size=(160, 2))
    for rate, exact in ((0.25, True), (0.25, False), (1.0, True)):
        result = corrupt_labels(y, rate, "confusable", seed=0, exact=exact, x=x.reshape(160, 1, 2))
        partner = torch.tensor([2, 3, 0, 1])
        assert torch.equal(result.y[result.flipped], partner[y[result.flipped]])
        expected = (1 - rate) * np.eye(4) + rate * np.eye(4)[partner]
        np.testing.assert_allclose(result.matrix.numpy(), expected, atol=1e-15)
        assert not exact or int(result.flipped.sum()) == round(rate * 160)


def test_confusable_ignores_shift_and_scale_of_x_and_the_seed():
    y = labels_of(150, 4)
    x = features_of(y)
    base = corrupt_labels(y, 0.3, "confusable", seed=0, x=x)
    for other in (1e6 * x, 1e-6 * x, x + 50.0, 1e200 * x):
        assert torch.equal(base.matrix, corrupt_labels(y, 0.3, "confusable", seed=0, x=other).matrix)
    assert torch.equal(base.matrix, corrupt_labels(y, 0.3, "confusable", seed=9, x=x).matrix)


def test_confusable_never_moves_to_a_class_without_rows():
    y = torch.tensor([0, 2, 3] * 30)  # no row of class 1
    x = np.random.default_rng(0).normal(size=(90, 3)) + 2.0 * y.numpy()[:, None]
    result = corrupt_labels(y, 0.5, "confusable", seed=0, x=x)
    assert not (result.y == 1).any()
    assert torch.equal(result.matrix[1], torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64))


def test_confusable_skips_classes_without_rows_and_takes_the_lower_class_of_a_tie(monkeypatch):
    said = torch.tensor([[0.0, 9.0, 0.1, 0.1, 0.0]], dtype=torch.float64)  # class 1 has no row, 2 and 3 are tied
    said = said + torch.tensor([0, 0, 0, 1e-13, 0], dtype=torch.float64)
    stub = SimpleNamespace(predictions=said.expand(40, 5))
    monkeypatch.setattr(transitions, "leave_one_out", lambda kernel, y, ridge: stub)
    y = torch.tensor([0, 2, 3, 4] * 10)
    matrix = corrupt_labels(y, 1.0, "confusable", seed=0, x=features_of(y)).matrix
    assert matrix.argmax(1).tolist() == [2, 1, 3, 2, 2]


def test_confusable_looks_at_a_sample_when_there_are_many_rows(monkeypatch):
    monkeypatch.setattr(transitions, "CONFUSION_ROWS", 80)
    y = labels_of(400, 4)
    centers = np.array([[0, 0], [20, 0], [0, 2], [20, 2]], dtype=float)
    x = centers[y.numpy()] + np.random.default_rng(2).normal(size=(400, 2))
    result = corrupt_labels(y, 1.0, "confusable", seed=0, x=x)
    assert torch.equal(result.y, torch.tensor([2, 3, 0, 1])[y])


@examples(1.25)
@given(n=sizes, n_classes=class_counts, seed=seeds)
def test_matrix_exact_counts_are_rounded_cell_by_cell(n, n_classes, seed):
    assume(n >= n_classes)
    y = labels_of(n, n_classes, seed)
    matrix = matrix_of(n_classes, seed)
    result = corrupt_labels(y, None, "matrix", seed=seed, matrix=matrix)
    counts = np.zeros((n_classes, n_classes))
    np.add.at(counts, (y.numpy(), result.y.numpy()), 1)
    expected = np.bincount(y.numpy(), minlength=n_classes)[:, None] * matrix
    assert np.all(np.abs(counts - expected) < 1)
    assert int(result.flipped.sum()) == round(expected.sum() - np.trace(expected))
    np.testing.assert_allclose(result.matrix.numpy(), matrix, atol=1e-15)


def test_matrix_exact_rounding_favors_no_class():
    """Eight classes of one row, 1.6 flips expected and 2 made: each class makes a quarter of them."""
    y = torch.arange(8)
    matrix = 0.8 * np.eye(8) + 0.2 * np.roll(np.eye(8), 1, axis=1)
    flips = sum(corrupt_labels(y, None, "matrix", seed=s, matrix=matrix).flipped.numpy() for s in range(400))
    assert flips.sum() == 800
    assert np.all(np.abs(flips - 100) <= SIGMAS * math.sqrt(400 * 0.25 * 0.75))


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2.0**-53])
def test_targets_of_probability_zero_are_never_drawn(u):
    rows = np.array([[0, 0.1, 0, 0.7, 0], [0, 5e-324, 0, 0, 0]])
    first, second = draws.draw_labels(rows, np.array([0, 1]), np.array([u, u]))
    assert first in (1, 3)
    assert second == 1


def test_matrix_may_name_more_classes_than_the_labels_hold_and_moves_to_none_of_probability_zero():
    y = torch.tensor([0, 1] * 50)
    matrix = np.array([[0.5, 0, 0.5], [0, 1, 0], [0, 0, 1]])
    for exact in (True, False):
        noisy = corrupt_labels(y, None, "matrix", seed=0, exact=exact, matrix=torch.tensor(matrix)).y
        assert set(noisy[y == 0].tolist()) == {0, 2}
        assert set(noisy[y == 1].tolist()) == {1}


def test_matrix_takes_the_rate_it_implies_and_refuses_another():
    y = torch.tensor([0] * 60 + [1] * 40)
    matrix = [[0.9, 0.1], [0.3, 0.7]]  # 0.6 * 0.1 + 0.4 * 0.3 = 0.18
    stated = corrupt_labels(y, 0.18, "matrix", seed=0, matrix=matrix)
    silent = corrupt_labels(y, None, "matrix", seed=0, matrix=matrix)
    assert torch.equal(stated.y, silent.y)
    assert int(silent.flipped.sum()) == 18
    with pytest.raises(InputError, match=r"0\.18"):
        corrupt_labels(y, 0.2, "matrix", seed=0, matrix=matrix)


def test_matrix_in_float32_is_taken():
    matrix = torch.full((3, 3), 1 / 3, dtype=torch.float32)
    corrupted = corrupt_labels(labels_of(30, 3), None, "matrix", seed=0, matrix=matrix)
    np.testing.assert_allclose(corrupted.matrix.sum(1).numpy(), 1, rtol=0, atol=1e-15)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2, 0.4, 0.95])
def test_instance_rows_leave_their_label_with_propensities_that_average_the_rate(rate):
    n, y = 400, labels_of(400, 4)
    x = features_of(y)
    rows = torch.arange(n)
    exact = 1 - corrupt_labels(y, rate, "instance", seed=0, x=x).matrix[rows, y]
    loose = 1 - corrupt_labels(y, rate, "instance", seed=0, x=x, exact=False).matrix[rows, y]
    assert float(exact.sum()) == pytest.approx(round(rate * n), abs=1e-9)
    assert float(loose.mean()) == pytest.approx(rate, abs=SIGMAS * 0.1 / math.sqrt(n))
    assert abs(float(loose.sum()) - round(rate * n)) > 1e-6, "independent rows are not tied by their sum"
    assert float(exact.std()) > 0.01
    assert float(exact.min()) >= 0
    assert float(exact.max()) <= 1


def test_instance_propensities_are_the_truncated_normal_where_truncation_is_far():
    y = labels_of(4000, 3)
    x = features_of(y)
    q = 1 - corrupt_labels(y, 0.5, "instance", seed=0, x=x, exact=False).matrix[torch.arange(4000), y]
    assert float(q.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(q.std()) == pytest.approx(0.1, abs=0.006)
    assert float(((q - 0.5).abs() < 0.1).double().mean()) == pytest.approx(0.683, abs=0.04)


@pytest.mark.parametrize("exact", [True, False])
def test_instance_flips_more_where_the_propensity_is_higher(exact):
    y = labels_of(3000, 4)
    x = features_of(y)
    high, low = 0, 0
    for seed in range(5):
        result = corrupt_labels(y, 0.2, "instance", seed=seed, x=x, exact=exact)
        q = 1 - result.matrix[torch.arange(3000), y]
        top = q > q.median()
        high += int(result.flipped[top].sum())
        low += int(result.flipped[~top].sum())
    assert high > low + SIGMAS * math.sqrt(high + low)


@pytest.mark.parametrize("exact", [True, False])
def test_instance_flips_follow_each_propensity(exact):
    """Grouped by propensity, the flips agree with the sum of the propensities: chi of each bin below 5."""
    y = labels_of(3000, 4)
    x = features_of(y)
    flips, mass, variance = np.zeros(5), np.zeros(5), np.zeros(5)
    for seed in range(10):
        result = corrupt_labels(y, 0.3, "instance", seed=seed, x=x, exact=exact)
        q = (1 - result.matrix[torch.arange(3000), y]).numpy()
        group = np.minimum((q * 10).astype(int), 4)
        flips += np.bincount(group, result.flipped.numpy(), 5)
        mass += np.bincount(group, q, 5)
        variance += np.bincount(group, q * (1 - q), 5)
    assert np.all(np.abs(flips - mass) <= SIGMAS * np.sqrt(variance) + 1e-9), (flips, mass)


def test_instance_targets_depend_on_x_and_not_on_its_scale():
    y = labels_of(300, 5)
    x = features_of(y, dim=64)
    base = corrupt_labels(y, 0.3, "instance", seed=0, x=x).matrix
    for other in (1e4 * x, x * np.linspace(0.01, 100, 64) + 7, x.reshape(300, 8, 8)):
        torch.testing.assert_close(corrupt_labels(y, 0.3, "instance", seed=0, x=other).matrix, base, atol=1e-9, rtol=0)
    rows = torch.arange(300)
    off = base / (1 - base[rows, y])[:, None]
    off[rows, y] = 0
    assert float(off.max(1).values.mean()) < 0.9, "the softmax is not degenerate"
    assert float(off[y == 0].std(0).max()) > 0.05, "rows of one class differ"
    with_constant = np.concatenate([x, np.ones((300, 1))], 1)
    assert bool(torch.isfinite(corrupt_labels(y, 0.3, "instance", seed=0, x=with_constant).matrix).all())


# ---- refusals ------------------------------------------------------------------------------------------


Y = torch.tensor([0, 1, 2, 0, 1, 2])
X = np.arange(12.0).reshape(6, 2)
GOOD = np.full((3, 3), 1 / 3)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: corrupt_labels(Y, -0.1, seed=0), "rate"),
        (lambda: corrupt_labels(Y, 1.1, seed=0), "rate"),
        (lambda: corrupt_labels(Y, float("nan"), seed=0), "rate"),
        (lambda: corrupt_labels(Y, "much", seed=0), "rate"),
        (lambda: corrupt_labels(Y, True, seed=0), "rate"),
        (lambda: corrupt_labels(Y, None, seed=0), "rate"),
        (lambda: corrupt_labels(Y, 0.1, "gaussian", seed=0), "instance"),
        (lambda: corrupt_labels(Y, 0.1, ["pair"], seed=0), "instance"),
        (lambda: corrupt_labels(torch.zeros(4, dtype=torch.int64), 0.1, seed=0), "class"),
        (lambda: corrupt_labels([], 0.1, seed=0), "label"),
        (lambda: corrupt_labels([0, 10**6], 0.1, seed=0), "renumber"),
        (lambda: corrupt_labels([0.5, 1], 0.1, seed=0), "whole"),
        (lambda: corrupt_labels([0, -1], 0.1, seed=0), "outside"),
        (lambda: corrupt_labels(torch.eye(3), 0.1, seed=0), "argmax"),
        (lambda: corrupt_labels(Y, 0.1, seed=-1), "seed"),
        (lambda: corrupt_labels(Y, 0.1, seed=0.5), "seed"),
        (lambda: corrupt_labels(Y, 0.1, seed=True), "seed"),
        (lambda: corrupt_labels(Y, 0.1, "confusable", seed=0), "x=None"),
        (lambda: corrupt_labels(Y, 0.1, "instance", seed=0), "x=None"),
        (lambda: corrupt_labels(Y, 0.1, "instance", seed=0, x=X[:5]), "x of shape"),
        (lambda: corrupt_labels(Y, 0.1, "instance", seed=0, x=3.0), "x of shape"),
        (lambda: corrupt_labels(Y, 0.1, "instance", seed=0, x=X[:, :0]), "x of shape"),
        (lambda: corrupt_labels(Y, 0.1, "instance", seed=0, x=X * np.nan), "NaN"),
        (lambda: corrupt_labels(Y, 0.1, "confusable", seed=0, x=np.ones((6, 2))), "same"),
        (lambda: corrupt_labels([1, 1, 1], 0.1, "confusable", seed=0, x=X[:3]), "class"),
        (lambda: corrupt_labels(Y, None, "matrix", seed=0), "matrix=None"),
        (lambda: corrupt_labels(Y, 0.1, "symmetric", seed=0, matrix=GOOD), "matrix"),
        (lambda: corrupt_labels(Y, None, "matrix", seed=0, matrix=GOOD[:2]), "square"),
        (lambda: corrupt_labels(Y, None, "matrix", seed=0, matrix=GOOD[:2, :2] * 1.5), "outside"),
        (lambda: corrupt_labels(Y, None, "matrix", seed=0, matrix=GOOD * 2), "sum to 1"),
        (lambda: corrupt_labels(Y, None, "matrix", seed=0, matrix=np.eye(3) * 2 - GOOD), "negative"),
        (lambda: corrupt_labels(Y, None, "matrix", seed=0, matrix=GOOD * np.nan), "NaN"),
    ],
)
def test_bad_arguments_are_refused_with_a_hint(call, says):
    with pytest.raises(InputError, match=says) as caught:
        call()
    assert caught.value.hint
