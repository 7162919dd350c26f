"""Predicted curves against kernel machines on many draws, limits, GCV by its definition, scores, refusals."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.double_descent.prediction.predict import Prediction, PredictionOptions, predict_curve
from kernelmem.double_descent.prediction.score import score_prediction
from kernelmem.double_descent.prediction.untrained_network import UntrainedNetwork, ridge_of_time
from kernelmem.double_descent.theory.kernel_ridge.curves import learning_curve
from kernelmem.double_descent.theory.kernel_ridge.spectral_task import flip_noise, pool_task
from kernelmem.kernels.ntk import ntk
from kernelmem.label_noise.corrupt import corrupt_labels
from tests.profiles import examples

N, D, C = 200, 30, 4
OPTIONS = tuple(PredictionOptions.__dataclass_fields__)


def predicted(make_model, x, y, **arguments):
    """predict_curve with the fields of its options as keywords."""
    options = PredictionOptions(**{name: arguments.pop(name) for name in OPTIONS if name in arguments})
    return predict_curve(make_model, (x, y), options=options, **arguments)


def pool(seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, generator=g, dtype=torch.float64)
    noise = 5 * torch.randn(N, C, generator=g, dtype=torch.float64)
    return x, (x @ torch.randn(D, C, generator=g, dtype=torch.float64) + noise).argmax(1)


def linear(width):
    return nn.Linear(D, C).double()


def mlp(width):
    return nn.Sequential(nn.Linear(D, width), nn.Tanh(), nn.Linear(width, C)).double()


def made(make, width, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(width)


def draws(model, x, y, n, ridge, noise, *, initial, count, kind="symmetric", flow=None):
    """Mean and standard error of clean, noisy and training error of the machine on random training rows."""
    K = ntk(model, x) / C
    start = model(x).detach() * initial
    Y = nn.functional.one_hot(y, C).double() - 1 / C
    found = []
    for r in range(count):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(r))
        rows, held = order[:n], order[n:]
        noisy = corrupt_labels(y, noise, kind, seed=r, exact=False).y
        T = nn.functional.one_hot(noisy, C).double() - 1 / C
        values, vectors = torch.linalg.eigh(K[rows][:, rows])
        inverse = 1 / (values + ridge) if flow is None else -torch.expm1(-flow * values / n) / values
        f = start + K[:, rows] @ (vectors * inverse) @ vectors.T @ (T[rows] - start[rows])
        errors = [(f - Y)[held], (f - T)[held], (f - T)[rows]]
        found.append([float(own.square().sum(1).mean()) for own in errors])
    table = torch.tensor(found, dtype=torch.float64)
    return table.mean(0), table.std(0) / count**0.5


@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize(
    ("n", "ridge", "noise", "kind"),
    [(100, 30.0, 0.3, "symmetric"), (140, 10.0, 0.2, "uniform"), (120, 6.0, 0.0, "symmetric")],
)
def test_it_is_the_mean_over_draws_of_rows_and_flips(n, ridge, noise, kind, initial):
    x, y = pool()
    found = predicted(
        linear, x, y, widths=[1], samples=n, ridge=ridge, noise=noise, kind=kind, seeds=(5,), initial=initial
    )
    mean, se = draws(made(linear, 1, 5), x, y, n, ridge, noise, initial=initial, count=40, kind=kind)
    for i, name in enumerate(("expected", "noisy", "train")):
        assert abs(float(getattr(found, name)) - float(mean[i])) < 3 * float(se[i]) + 0.005 * float(mean[i]), name


def test_from_zero_it_is_the_pool_curve_of_kernel_ridge():
    x, y = pool()
    found = predicted(mlp, x, y, widths=30, samples=[40, 90], ridge=0.7, noise=0.2, seeds=(3,), initial=False)
    K = ntk(made(mlp, 30, 3), x) / C
    Y = nn.functional.one_hot(y, C).double() - 1 / C
    want = learning_curve(pool_task(K, Y), [40, 90], ridge=0.7, noise=flip_noise(0.2, C))
    assert torch.allclose(found.expected, want.clean, rtol=1e-9)
    assert torch.allclose(found.noisy, want.test, rtol=1e-9)
    assert torch.allclose(found.train, want.train, rtol=1e-9)


def test_kernels_between_outputs_are_those_of_one_output_for_a_linear_model():
    """K = (x·x' + 1) ⊗ I: C copies of one machine."""
    x, y = pool()
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(1))[:90]
    options = {"widths": 1, "samples": [20, 90], "noise": 0.2, "seeds": (3,), "train": (rows, y[rows])}
    for more in ({"ridge": 2.0}, {"time": 4.0}, {"ridge": 0.0}):
        one = predicted(linear, x, y, **options, **more)
        full = predicted(linear, x, y, outputs="full", **options, **more)
        for name in ("expected", "noisy", "train", "gcv", "ridges"):
            assert torch.allclose(getattr(full, name), getattr(one, name), rtol=1e-6, atol=1e-9), (more, name)


def test_the_threshold_of_a_narrow_network_is_where_its_weights_are_as_many_as_targets():
    """35 w + 4 weights, 40 rows of 4 outputs: 160 targets; one kernel for all outputs sees 40."""
    x, y = pool()
    options = {"widths": [2, 4, 5, 40], "samples": 40, "noise": 0.2, "seeds": (0,)}
    full = predicted(mlp, x[:90], y[:90], outputs="full", **options)
    assert float(full.train[1]) > 1e-3
    assert full.train[2:].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert full.peak in (4, 5)
    trace = predicted(mlp, x[:90], y[:90], **options)
    assert trace.train.tolist() == pytest.approx([0] * 4, abs=1e-6)


def test_the_kernel_of_a_pool_is_that_of_its_tangents():
    x, y = pool()
    model, few = made(mlp, 5, 1), 7
    tangents = []
    for row in x[:few]:
        parts = [torch.autograd.grad(model(row[None])[0, c], list(model.parameters())) for c in range(C)]
        tangents += [torch.cat([g.flatten() for g in own]) for own in parts]
    J = torch.stack(tangents)
    full = UntrainedNetwork.compute(model, x[:few], y[:few], True, None, "1GiB", "full")
    assert torch.allclose(full.kernel, J @ J.T, rtol=1e-10, atol=1e-12)
    trace = UntrainedNetwork.compute(model, x[:few], y[:few], False, None, "1GiB", "trace")
    by_rows = (J @ J.T).view(few, C, few, C)
    assert torch.allclose(trace.kernel, torch.einsum("ncmc->nm", by_rows) / C, rtol=1e-10)
    assert torch.equal(full.initial_outputs, model(x[:few]).detach())
    assert float(trace.initial_outputs.abs().max()) == 0
    assert (full.rows_per_example, trace.rows_per_example) == (C, 1)


def test_kernels_between_outputs_are_the_machine_of_a_narrow_network():
    """Where outputs share most weights, the kernel of one output counts them C times."""
    x, y = pool()
    x, y, n, ridge, m = x[:110], y[:110], 70, 0.3, 110
    model = made(mlp, 3, 2)
    K = ntk(model, x, outputs="full").permute(0, 2, 1, 3).reshape(m * C, m * C)
    start, Y = model(x).detach(), nn.functional.one_hot(y, C).double() - 1 / C
    found = []
    for r in range(60):
        order = torch.randperm(m, generator=torch.Generator().manual_seed(r))
        rows, held = order[:n], order[n:]
        T = nn.functional.one_hot(corrupt_labels(y, 0.2, seed=r, exact=False).y, C).double() - 1 / C
        at = (rows[:, None] * C + torch.arange(C)).flatten()
        A = K[at][:, at] + ridge * torch.eye(n * C, dtype=K.dtype)
        f = start + (K[:, at] @ torch.linalg.solve(A, (T[rows] - start[rows]).flatten())).view(m, C)
        errors = [(f - Y)[held], (f - T)[held], (f - T)[rows]]
        found.append([float(own.square().sum(1).mean()) for own in errors])
    table = torch.tensor(found, dtype=torch.float64)
    options = {"widths": 3, "samples": [n], "ridge": ridge, "noise": 0.2, "seeds": (2,)}
    full = predicted(mlp, x, y, outputs="full", **options)
    trace = predicted(mlp, x, y, **options)
    want = table.mean(0).tolist()
    for i, name in enumerate(("expected", "noisy", "train")):
        assert float(getattr(full, name)) == pytest.approx(want[i], rel=0.06), name
    assert abs(float(trace.train) - want[2]) > 2 * abs(float(full.train) - want[2])
    with pytest.raises(InputError):
        predicted(mlp, x, y, outputs="pseudo", **options)


def test_without_learning_the_error_is_that_of_the_network_as_it_was_made():
    x, y = pool()
    model = made(mlp, 20, 0)
    found = predicted(mlp, x, y, widths=20, samples=[50, 100], ridge=1e12, noise=0.2, seeds=(0,))
    Y = nn.functional.one_hot(y, C).double() - 1 / C
    assert found.expected.tolist() == pytest.approx(
        [float((model(x).detach() - Y).square().sum(1).mean())] * 2, rel=1e-6
    )


@pytest.mark.parametrize("time", [3.0, 20.0])
def test_gradient_flow_is_close_to_the_ridge_of_as_many_degrees_of_freedom(time):
    x, y = pool()
    found = predicted(linear, x, y, widths=[1], samples=90, time=time, noise=0.2, seeds=(5,))
    mean, _ = draws(made(linear, 1, 5), x, y, 90, 0.0, 0.2, initial=True, count=40, flow=time)
    for i, name in enumerate(("expected", "noisy", "train")):
        assert float(getattr(found, name)) == pytest.approx(float(mean[i]), rel=0.06), name


@examples(0.5)
@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=12), st.floats(1e-3, 1e3))
def test_the_ridge_of_a_time_matches_the_degrees_of_freedom(values, time):
    kappa = torch.tensor(values, dtype=torch.float64)
    ridge = ridge_of_time(kappa, time)
    flow = float(-torch.expm1(-time * kappa / len(values)).sum())
    # a ridge below rounding of the largest eigenvalue has the effect of no ridge
    assert float((kappa / (kappa + ridge)).sum()) == pytest.approx(flow, rel=1e-6)
    assert ridge_of_time(kappa, 2 * time) <= ridge
    assert ridge_of_time(3 * kappa, time / 3) == pytest.approx(3 * ridge, rel=1e-6)


def test_gcv_is_its_definition_and_takes_the_first_rows():
    x, y = pool()
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(1))[:120]
    noisy = corrupt_labels(y[rows], 0.2, seed=0).y
    options = {"widths": 30, "samples": [60, 120], "noise": 0.2, "seeds": (3,), "train": (rows, noisy)}
    model = made(mlp, 30, 3)
    K, start = ntk(model, x) / C, model(x).detach()
    for ridge in (0.5, 0.0):
        found = predicted(mlp, x, y, ridge=ridge, **options)
        for i, n in enumerate((60, 120)):
            T = nn.functional.one_hot(noisy[:n], C).double() - 1 / C - start[rows[:n]]
            A = K[rows[:n]][:, rows[:n]] + (ridge or 1e-9) * torch.eye(n, dtype=K.dtype)
            inverse = torch.linalg.inv(A)
            want = n * float((inverse @ T).square().sum()) / float(inverse.diagonal().sum()) ** 2
            assert float(found.gcv[i]) == pytest.approx(want, rel=1e-3 if ridge == 0 else 1e-9)
    assert predicted(mlp, x, y, widths=30, samples=[60], seeds=(3,)).gcv is None


def test_gcv_of_a_kernel_of_low_rank_without_a_ridge():
    x, y = pool()
    rows = torch.arange(100)
    found = predicted(linear, x, y, widths=1, samples=[100], seeds=(3,), train=(rows, y[rows]))
    X = torch.cat([x[rows], torch.ones(100, 1, dtype=x.dtype)], 1)
    hat = X @ torch.linalg.pinv(X)
    T = nn.functional.one_hot(y[rows], C).double() - 1 / C - made(linear, 1, 3)(x[rows]).detach()
    want = float((T - hat @ T).square().sum()) / 100 / (1 - 31 / 100) ** 2
    assert float(found.gcv) == pytest.approx(want, rel=1e-8)


def test_the_axes_meet_and_seeds_are_averaged():
    x, y = pool()
    common = {"noise": 0.2, "seeds": (0, 1, 4)}
    by_width = predicted(mlp, x, y, widths=[4, 16], samples=90, ridge=0.3, **common)
    by_n = predicted(mlp, x, y, widths=16, samples=[30, 90], ridge=0.3, **common)
    by_ridge = predicted(mlp, x, y, widths=16, samples=90, ridge=[0.1, 0.3, 1.0], **common)
    at = float(by_width.expected[1])
    assert at == pytest.approx(float(by_n.expected[1]), rel=1e-12)
    assert at == pytest.approx(float(by_ridge.expected[1]), rel=1e-12)
    assert [own.axis_name for own in (by_width, by_n, by_ridge)] == ["width", "samples", "ridge"]
    assert torch.allclose(by_width.expected, by_width.by_seed.mean(0))
    assert torch.equal(by_width.low, by_width.by_seed.amin(0))
    assert torch.equal(by_width.high, by_width.by_seed.amax(0))
    assert bool((by_width.low < by_width.high).all())
    assert torch.allclose(by_width.se, by_width.by_seed.std(0) / 3**0.5)
    alone = predicted(mlp, x, y, widths=[4, 16], samples=90, ridge=0.3, noise=0.2, seeds=(4,))
    assert torch.allclose(alone.expected, by_width.by_seed[2])
    assert bool(torch.isnan(alone.se).all())


def test_the_random_state_is_left_alone_and_one_seed_is_one_network():
    x, y = pool()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = predicted(mlp, x, y, widths=[4], samples=90, seeds=(1,))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(predicted(mlp, x, y, widths=[4], samples=90, seeds=(1,)).expected, first.expected)


def test_networks_are_taken_in_eval_mode():
    x, y = pool()

    def dropping(width):
        return nn.Sequential(nn.Linear(D, width), nn.Tanh(), nn.Dropout(0.5), nn.Linear(width, C)).double()

    options = {"widths": [8], "samples": 60, "ridge": 0.1, "seeds": (0,)}
    found = predicted(dropping, x, y, **options)
    assert torch.allclose(found.expected, predicted(mlp, x, y, **options).expected)


def test_a_threshold_without_a_ridge_is_where_it_should_be():
    x, y = pool()
    found = predicted(linear, x, y, widths=1, samples=[20, 28, 34, 120], noise=0.2, seeds=(0,), initial=False)
    assert found.peak in (28, 34)  # 31 parameters an output
    assert float(found.train[0]) == pytest.approx(0, abs=1e-9)
    assert float(found.train[3]) > 0.1


def test_it_is_saved_printed_and_drawn(tmp_path):
    x, y = pool()
    seen = []
    found = predicted(
        mlp, x, y, widths=[4, 8, 16], samples=90, seeds=(0, 1), ridge=0.1, progress=lambda *done: seen.append(done)
    )
    assert seen[-1] == (6, 6)
    again = Prediction.load(found.save(tmp_path / "p.safetensors"))
    assert torch.equal(again.by_seed, found.by_seed)
    assert again.setting == found.setting
    assert again.gcv is None
    assert "90 training examples, ridge 0.1" in str(again)
    assert list(found.to_frame().columns) == ["expected", "low", "high", "noisy", "train"]
    figure = found.plot(torch.rand(3, 3, generator=torch.Generator().manual_seed(0)) + 0.5)
    assert figure.axes[0].get_ylabel() == "mean squared error"
    figure.savefig(tmp_path / "p.svg")
    found.plot().savefig(tmp_path / "q.svg")
    with pytest.raises(InputError):
        found.plot(torch.ones(2))
    (tmp_path / "p.safetensors").write_bytes(b"")
    with pytest.raises(FileCorruptError):
        Prediction.load(tmp_path / "p.safetensors")


@pytest.mark.parametrize(
    "bad",
    [
        {"widths": 4},
        {"widths": [4], "samples": [30]},
        {"samples": [N]},
        {"samples": [0]},
        {"samples": [30, 20]},
        {"ridge": -1.0},
        {"noise": 1.5},
        {"noise": 0.2, "kind": "pair"},
        {"seeds": ()},
        {"seeds": (1, 1)},
        {"seeds": (-1,)},
        {"time": 0.0},
        {"time": 1.0, "ridge": 0.1},
        {"train": (torch.arange(10), torch.zeros(10).long())},
        {"train": (torch.zeros(60).long(), torch.zeros(60).long())},
        {"train": (torch.arange(60), torch.full((60,), C))},
        {"train": (torch.arange(60) + N, torch.zeros(60).long())},
        {"train": torch.arange(60)},
    ],
)
def test_arguments_that_mean_nothing_are_refused(bad):
    x, y = pool()
    arguments = {"widths": 4, "samples": 60 if "widths" in bad else [30, 60], **bad}
    with pytest.raises(InputError):
        predicted(mlp, x, y, **arguments)


def test_labels_and_models_that_do_not_fit_are_refused():
    x, y = pool()
    for labels in (y[:-1], y + 1, y - 1, y.double() + 0.5):
        with pytest.raises(InputError):
            predicted(mlp, x, labels, widths=[4], samples=60)
    with pytest.raises(InputError, match="make_model"):
        predicted(lambda width: None, x, y, widths=[4], samples=60)
    with pytest.raises(InputError):
        predicted(mlp, x[:, :3], y, widths=[4], samples=60)
    with pytest.raises(InputError):
        ridge_of_time([0.0, 0.0], 1.0)
    for time in (0.0, -1.0, math.inf):
        with pytest.raises(InputError):
            ridge_of_time([1.0], time)


def prediction(expected):
    own = torch.tensor(expected, dtype=torch.float64)
    axis = torch.arange(1.0, len(expected) + 1, dtype=torch.float64)
    return Prediction("width", axis, own, own, own, own, own, None, own[None], own[None], "given")


def test_scores_by_hand():
    found = score_prediction(prediction([1.0, 2.0, 4.0, 3.0]), [[2.0, 2.0, 4.0, 1.0], [2.0, 4.0, 4.0, 2.0]])
    assert found.measured.tolist() == [2, 3, 4, 1.5]
    assert found.relative_error.tolist() == pytest.approx([-0.5, -1 / 3, 0, 1.0])
    assert found.median_error == pytest.approx((1 / 3 + 0.5) / 2)
    # ranks 1 2 4 3 and 2 3 4 1: 1 − 6 (1 + 1 + 0 + 4) / (4 · 15)
    assert found.rank_correlation == pytest.approx(0.4)
    assert found.se.tolist() == pytest.approx([0, 1, 0, 0.5])
    assert math.isnan(found.rank_se)
    assert found.peak == (3, 3)
    assert "rank correlation 0.400" in str(found)
    assert list(found.to_frame().columns) == ["measured", "se", "relative_error"]


def test_the_null_is_exact_for_few_places_and_close_to_it_for_many():
    same = score_prediction(prediction([1.0, 2.0, 3.0, 4.0]), [1.0, 2.0, 3.0, 4.0])
    assert same.rank_correlation == pytest.approx(1)
    assert same.p_value == pytest.approx(1 / 24)
    assert same.null_spread == pytest.approx(1 / 3**0.5)  # 1 / √(A − 1)
    up = [float(i) for i in range(1, 13)]
    many = score_prediction(prediction(up), up, n_permutations=999)
    assert many.p_value == pytest.approx(1 / 1000)
    assert many.null_spread == pytest.approx(1 / 11**0.5, rel=0.1)
    down = score_prediction(prediction(up), up[::-1], n_permutations=999)
    assert down.rank_correlation == pytest.approx(-1)
    assert down.p_value == 1.0
    assert score_prediction(prediction(up), [5.0] * 12).rank_correlation == 0
    generator = torch.Generator().manual_seed(0)
    chance = [
        score_prediction(prediction(up), torch.rand(12, generator=generator) + 1, n_permutations=99).p_value
        for _ in range(40)
    ]
    assert 0.34 < sum(chance) / 40 < 0.66  # uniform where there is no relation


def test_ties_share_their_rank_and_runs_give_a_standard_error():
    found = score_prediction(prediction([1.0, 1.0, 2.0, 3.0]), [1.0, 2.0, 3.0, 4.0])
    left = torch.tensor([1.5, 1.5, 3, 4]) - 2.5
    right = torch.tensor([1.0, 2, 3, 4]) - 2.5
    assert found.rank_correlation == pytest.approx(float(left @ right / (left.norm() * right.norm())))
    runs = 1 + torch.rand(6, 8, generator=torch.Generator().manual_seed(1)) + torch.arange(8.0) / 20
    scores = [
        score_prediction(prediction([float(i) for i in range(1, 9)]), own, n_permutations=99)
        for own in (runs, *[torch.cat([runs[:r], runs[r + 1 :]]) for r in range(6)])
    ]
    left_out = torch.tensor([own.rank_correlation for own in scores[1:]], dtype=torch.float64)
    assert scores[0].rank_se == pytest.approx(
        float((left_out - left_out.mean()).square().sum() * 5 / 6) ** 0.5, rel=1e-6
    )
    assert scores[0].rank_se > 0


@pytest.mark.parametrize(
    "measured", [[1.0, 2.0], [[1.0, 2.0, 3.0]], [1.0, 2, 0, 3], [1.0, 2, float("nan"), 3], torch.ones(0, 4)]
)
def test_measurements_that_do_not_fit_are_refused(measured):
    with pytest.raises(InputError):
        score_prediction(prediction([1.0, 2.0, 3.0, 4.0]), measured)
    with pytest.raises(InputError, match="infinite"):
        score_prediction(prediction([1.0, math.inf, 3.0]), [1.0, 2.0, 3.0])
