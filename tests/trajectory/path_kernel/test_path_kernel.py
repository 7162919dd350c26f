"""Path kernel: laws, closed forms, and the definition by dense Jacobians."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, jacrev

from kernelmem.core.errors import InputError, NumericalError, VerificationError
from kernelmem.kernels.ntk import ntk
from kernelmem.recording.replay import replay
from kernelmem.trajectory.path_kernel.kernel_at_weights import KernelAtWeights
from kernelmem.trajectory.path_kernel.path_kernel import PathKernel, PathKernelOptions, path_kernel
from tests.profiles import examples
from tests.tolerances import EPS
from tests.trajectory.recorded import OPTIMIZERS, digits, mlp, record


def small(activation=nn.Tanh, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 6), activation(), nn.Linear(6, 5), activation(), nn.Linear(5, 3)]
    return nn.Sequential(*layers).to(dtype)


def data(n=12, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(3, (n,), generator=generator)


def train(path, model, *, optimizer=None, steps=6, batch=5, dtype=torch.float64, **options):
    x, y = data(dtype=dtype)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.5)
    return record(path, model, optimizer, x, y, steps=steps, batch=batch, **options)


def jacobian(model, state, x):
    """J (n, C, P) of the parameters, row by row, in float64."""
    model = model.double().eval()
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    fixed = {name: value.double() if value.is_floating_point() else value for name, value in state.items()}
    moving = {name: fixed[name] for name in names}
    rows = []
    for row in x:
        found = jacrev(lambda p, row=row: functional_call(model, {**fixed, **p}, (row[None],))[0], chunk_size=1)(moving)
        rows.append(torch.cat([found[name].flatten(1) for name in names], 1))
    return torch.stack(rows).detach()


def definition(run, model, x, y, *, order, weights):
    """The full path kernel (n, m, C, C) by dense Jacobians at NumPy's nodes."""
    nodes, masses = np.polynomial.legendre.leggauss(order)
    total = 0.0
    for (now, after), weight in zip(itertools.pairwise(s for _, s in replay(run, model)), weights, strict=True):
        for node, mass in zip(nodes, masses, strict=True):
            place = (node + 1) / 2
            moving = {name for name, _ in model.named_parameters()}
            state = {n: torch.lerp(v.double(), after[n].double(), place) if n in moving else v for n, v in now.items()}
            a, b = jacobian(model, state, x), jacobian(model, state, y)
            total = total + weight * mass / 2 * torch.einsum("ncp,mdp->nmcd", a, b)
    return total


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def rates(run):
    return [step.groups[0]["lr"] for step in run.steps]


def lengths(run, model):
    names = [name for name, _ in model.named_parameters()]
    pairs = itertools.pairwise(state for _, state in replay(run, model))
    return [math.sqrt(sum(float((b[n] - a[n]).double().square().sum()) for n in names)) for a, b in pairs]


@pytest.mark.parametrize(("weighting", "order"), [("mean", 1), ("time", 3), ("length", 2)])
def test_path_kernel_equals_the_definition(tmp_path, weighting, order):
    model = small()
    run = train(tmp_path / "run", model, optimizer=torch.optim.AdamW(model.parameters(), lr=0.02))
    x, y = data(4, seed=1)[0], data(3, seed=2)[0]
    weights = {"mean": [1 / 6] * 6, "time": rates(run), "length": lengths(run, model)}[weighting]
    full = definition(run, small(), x, y, order=order, weights=weights)
    own = {
        kind: path_kernel(run, model, x, y, outputs=kind, options=PathKernelOptions(weighting=weighting, n_nodes=order))
        for kind in KINDS
    }
    diagonal = full.diagonal(dim1=2, dim2=3)
    assert relative(own["full"].values, full) < 1e-13
    assert relative(own["diagonal"].values, diagonal) < 1e-13
    assert relative(own["trace"].values, diagonal.sum(-1)) < 1e-13
    assert relative(own["pseudo"].values, full.sum((2, 3)) / 3) < 1e-13
    assert own["full"].total_weight == pytest.approx(sum(weights), rel=1e-12)


KINDS = ("trace", "diagonal", "full", "pseudo")


@given(st.sampled_from(list(OPTIMIZERS)), st.sampled_from(KINDS), st.integers(1, 4), st.integers(0, 10**6))
@examples(0.2)
def test_linear_model_has_its_tangent_kernel_for_any_run(tmp_path_factory, optimizer, kind, order, seed):
    torch.manual_seed(seed)
    model = nn.Linear(4, 3).double()
    path = tmp_path_factory.mktemp("linear") / "run"
    run = train(path, model, optimizer=OPTIMIZERS[optimizer](model.parameters()), steps=4, seed=seed)
    x = data(5, seed=seed)[0]
    own = path_kernel(run, model, x, outputs=kind, options=PathKernelOptions(n_nodes=order))
    assert relative(own.values, ntk(model, x, outputs=kind)) < 1e-13
    assert own.error < 1e-14
    time = path_kernel(run, model, x, outputs=kind, options=PathKernelOptions(n_nodes=order, weighting="time"))
    assert relative(time.values, sum(rates(run)) * own.values) < 1e-13


@given(st.sampled_from(["mean", "time", "length"]), st.sampled_from([nn.Tanh, nn.ReLU]), st.integers(0, 10**6))
@examples(0.15)
def test_symmetric_positive_semidefinite_and_permutation_equivariant(tmp_path_factory, weighting, activation, seed):
    model = small(activation, seed=seed)
    run = train(tmp_path_factory.mktemp("laws") / "run", model, steps=4, seed=seed)
    x = data(9, seed=seed)[0]
    x = torch.cat([x, x[:2]])  # singular on purpose
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    for kind in ("trace", "pseudo"):
        own = path_kernel(run, model, x, outputs=kind, options=PathKernelOptions(weighting=weighting)).values
        assert torch.equal(own, own.T)
        values = torch.linalg.eigvalsh(own)
        assert float(values.min()) >= -len(x) * torch.finfo(own.dtype).eps * float(values.max())
        again = path_kernel(run, model, x[order], outputs=kind, options=PathKernelOptions(weighting=weighting)).values
        assert relative(again, own[order][:, order]) < 1e-13
        both = path_kernel(run, model, x, x, outputs=kind, options=PathKernelOptions(weighting=weighting)).values
        assert relative(both, own) < 1e-13
    full = path_kernel(run, model, x, outputs="full", options=PathKernelOptions(weighting=weighting)).values
    matrix = full.transpose(1, 2).reshape(3 * len(x), -1)
    assert torch.equal(matrix, matrix.T)
    values = torch.linalg.eigvalsh(matrix)
    assert float(values.min()) >= -len(matrix) * torch.finfo(own.dtype).eps * float(values.max())


def test_steps_of_length_zero_give_the_tangent_kernel(tmp_path):
    model = small()
    before = ntk(model, data(5)[0])
    run = train(tmp_path / "run", model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0), steps=1)
    own = path_kernel(run, model, data(5)[0])
    assert relative(own.values, before) < 1e-14
    assert own.error < 1e-15
    assert (
        float(path_kernel(run, model, data(5)[0], options=PathKernelOptions(weighting="length")).values.abs().max())
        == 0.0
    )
    assert path_kernel(run, model, data(5)[0], options=PathKernelOptions(weighting="length")).error == 0.0


class Part:
    """Steps a..b of a run, as a run."""

    def __init__(self, run, start, stop):
        self.run, self.start = run, start
        self.steps = run.steps[start:stop]
        self.kept = tuple(t - start for t in run.kept if start <= t <= stop)
        self.meta = {**run.meta, "initial": run.steps[start - 1].after if start else run.meta["initial"]}

    def __len__(self):
        return len(self.steps)

    def checkpoint(self, t):
        return self.run.checkpoint(t + self.start)

    def weights(self, t):
        return self.checkpoint(t).model

    def __getattr__(self, name):
        return getattr(self.run, name)


@pytest.mark.parametrize("weighting", ["time", "length"])
def test_parts_of_a_run_add_up(tmp_path, weighting):
    model = small()
    run = train(tmp_path / "run", model, keep="all", steps=7)
    x = data(6, seed=1)[0]
    whole = path_kernel(run, model, x, options=PathKernelOptions(weighting=weighting))
    parts = [
        path_kernel(Part(run, a, b), model, x, options=PathKernelOptions(weighting=weighting))
        for a, b in ((0, 3), (3, 7))
    ]
    assert relative(parts[0].values + parts[1].values, whole.values) < 1e-14
    assert parts[0].total_weight + parts[1].total_weight == pytest.approx(whole.total_weight, rel=1e-14)


def test_rules_converge_at_their_order_and_the_estimate_says_so(tmp_path):
    """One step of half the length in the same direction: the errors fall by 4, 16, 64 for 1, 2, 3 nodes."""
    x, y = digits(32)
    found = {}
    for halving in (0, 1):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.12 / 2**halving)
        run = record(tmp_path / str(halving), model, optimizer, x, y, batch=32, steps=1, loss="mse")
        exact = path_kernel(run, model, x[:10], options=PathKernelOptions(n_nodes=8, weighting="time")).values
        for order in (1, 2, 3):
            own = path_kernel(run, model, x[:10], options=PathKernelOptions(n_nodes=order, weighting="time"))
            error = float((own.values - exact).norm() / exact.norm())
            assert 0.7 * error < own.error < 5 * error
            found[order, halving] = error
    for order in (1, 2, 3):
        assert found[order, 1] > 1e5 * EPS, "rounding would decide"
        assert math.log2(found[order, 0] / found[order, 1]) == pytest.approx(2 * order, abs=0.3)


def test_thinning_is_labelled_and_its_error_is_not_understated(tmp_path):
    x, y = digits(64)
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    run = record(tmp_path / "run", model, optimizer, x, y, batch=64, steps=28)
    for weighting in ("mean", "length"):
        exact = path_kernel(run, model, x[:8], options=PathKernelOptions(weighting=weighting))
        assert exact.thinning_error == 0.0
        assert "all steps" in str(exact)
        for every in (2, 3, 7):
            own = path_kernel(run, model, x[:8], options=PathKernelOptions(stride=every, weighting=weighting))
            error = float((own.values - exact.values).norm() / exact.values.norm())
            assert error <= own.error < 200 * error
            assert own.evaluations < exact.evaluations
            assert own.total_weight == pytest.approx(exact.total_weight, rel=1e-12)
            assert "estimated from one step in" in str(own)


def test_the_middle_step_is_used_for_its_block(tmp_path):
    model = small()
    run = train(tmp_path / "run", model, keep="all", steps=8)
    x = data(6, seed=1)[0]
    own = path_kernel(run, model, x, options=PathKernelOptions(stride=2, weighting="time")).values
    parts = [
        path_kernel(Part(run, t, t + 1), model, x, options=PathKernelOptions(weighting="mean")).values
        for t in (0, 3, 4, 7)
    ]
    assert relative(own, sum(2 * 0.5 * part for part in parts)) < 1e-14
    # the error figure: the second block stands for the first three, the last one for itself
    own = path_kernel(run, model, x, options=PathKernelOptions(stride=2, weighting="mean"))
    coarse = 6 / 8 * parts[1] + 2 / 8 * parts[3]
    assert own.thinning_error == pytest.approx(float((own.values - coarse).norm() / own.values.norm()), rel=1e-12)


@pytest.mark.parametrize("target", ["margin", "loss", ("logit", 2)])
def test_targets(tmp_path, target):
    model = small()
    run = train(tmp_path / "run", model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0), steps=2)
    (x, a), (z, b) = data(5, seed=1), data(4, seed=2)
    own = path_kernel(run, model, x, z, target=target, labels=(a, b))
    assert relative(own.values, ntk(model, x, z, target=target, labels=(a, b))) < 1e-13
    own = path_kernel(run, model, x, target=target, labels=a)
    assert relative(own.values, ntk(model, x, target=target, labels=a)) < 1e-13


def test_float32_runs_and_dtypes(tmp_path):
    model = small(dtype=torch.float32)
    run = train(tmp_path / "run", model, dtype=torch.float32)
    x = data(5, seed=1, dtype=torch.float32)[0]
    single, double = (
        path_kernel(run, model, x),
        path_kernel(run, model, x, options=PathKernelOptions(dtype=torch.float64)),
    )
    assert single.values.dtype == torch.float32
    assert double.values.dtype == torch.float64
    assert relative(single.values.double(), double.values) < 1e-5
    full = definition(run, small(dtype=torch.float32), x.double(), x.double(), order=2, weights=[1 / 6] * 6)
    assert relative(double.values, full.diagonal(dim1=2, dim2=3).sum(-1)) < 1e-13


class Zeroed(nn.Module):
    """A readout that starts at zero, behind views that mix channels: nothing of that is to be seen at the start."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.out = nn.Linear(4, 6), nn.Linear(6, 3)
        nn.init.zeros_(self.out.weight)

    def forward(self, x):
        return self.out(torch.tanh(self.inner(x)).view(-1, 3, 2).transpose(1, 2).reshape(-1, 6))


class Wide(nn.Module):
    """More outputs than hidden units, so that the readout is compressed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.out = nn.Linear(4, 2), nn.Linear(2, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.inner(x)))


def normed():
    torch.manual_seed(0)
    out = nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), out).double()


def batch_normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Tanh(), nn.Linear(5, 3)).double()


def convolutional():
    torch.manual_seed(0)
    inner = [nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 4, 2, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 2), nn.ReLU()]
    return nn.Sequential(*inner, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)).double()


@pytest.mark.parametrize("outputs", ["trace", "full"])
@pytest.mark.parametrize(
    "make", [lambda: Zeroed().double(), lambda: Wide().double(), normed, batch_normed, convolutional]
)
def test_kernel_does_not_depend_on_the_weights_of_the_model(tmp_path, make, outputs):
    """What is learned once about a network must hold all along the run."""
    model = make()
    run = train(tmp_path / "run", model, steps=5)
    x = data(4, seed=1)[0]
    full = definition(run, make(), x, x, order=2, weights=[1 / 5] * 5)
    expected = full if outputs == "full" else full.diagonal(dim1=2, dim2=3).sum(-1)
    for own, verify in itertools.product((make(), model), (True, False)):  # its weights are of no account
        assert (
            relative(
                path_kernel(run, own, x, outputs=outputs, options=PathKernelOptions(verify=verify)).values, expected
            )
            < 1e-12
        )


def test_models_that_mix_the_rows_of_a_batch_are_refused(tmp_path):
    class Centered(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small()

        def forward(self, x):
            return self.inner(x - x.mean(0))

    model = Centered()
    run = train(tmp_path / "run", model)
    with pytest.raises(VerificationError, match="depend on the other rows"):
        path_kernel(run, model, data(4)[0])


def test_only_parameters_of_the_optimizer_are_differentiated(tmp_path):
    model = small()
    parameters = [*model[0].parameters(), model[4].weight]
    run = train(tmp_path / "run", model, optimizer=torch.optim.SGD(parameters, lr=0.0), steps=1)
    names = ["0.weight", "0.bias", "4.weight"]
    x = data(4)[0]
    assert relative(path_kernel(run, model, x).values, ntk(model, x, parameters=names)) < 1e-13


def test_model_is_unchanged_and_results_convert_to_arrays(tmp_path):
    model = small().train()
    run = train(tmp_path / "run", model)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    done = []
    own = path_kernel(run, model, data(5)[0], progress=lambda i, n: done.append((i, n)))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert done == [(i + 1, 6) for i in range(6)]
    assert np.asarray(own).shape == (5, 5)
    assert np.asarray(own, dtype=np.float32).dtype == np.float32
    assert own.shape == (5, 5)
    assert isinstance(own, PathKernel)
    copied = np.array(own, copy=True)
    copied[:] = 0.0
    assert float(own.values.abs().max()) > 0


def test_small_memory_gives_the_same_kernel(tmp_path):
    x, y = digits(20)
    model = mlp()
    run = record(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=0.1), x, y, steps=6)
    whole = path_kernel(run, model, x)
    little = path_kernel(run, model, x, options=PathKernelOptions(memory=8 * 20 * 20 * 4 + 300_000))
    assert relative(little.values, whole.values) < 1e-13
    with pytest.raises(InputError, match="sums of"):
        path_kernel(run, model, x, options=PathKernelOptions(memory=8 * 20 * 20 * 4))
    with pytest.raises(InputError, match="room for 6"):
        path_kernel(run, model, x, options=PathKernelOptions(stride=2, memory=8 * 20 * 20 * 6))


def test_one_set_of_rows_is_planned_as_half_the_work(tmp_path):
    names = [name for name, _ in small().named_parameters()]
    options = {"outputs": "trace", "target": None, "labels": None, "parameters": names}
    options |= {"forward": None, "dtype": None, "device": None}
    x = data(5)[0]
    assert KernelAtWeights(small(), x, None, **options).plan(2**24).symmetric
    assert not KernelAtWeights(small(), x, x, **options).plan(2**24).symmetric


def test_bad_arguments_are_refused(tmp_path):
    model = small()
    run = train(tmp_path / "run", model)
    x, y = data(5)
    for options, message in (
        ({"outputs": "sum"}, "outputs="),
        ({"options": PathKernelOptions(stride=3)}, "1..2"),
        ({"target": "margin"}, "labels"),
        ({"target": "margin", "labels": y[:3]}, "labels"),
        ({"target": "margin", "labels": y, "y": x}, "labels for x alone"),
    ):
        with pytest.raises(InputError, match=message):
            path_kernel(run, model, x, **options)
    for options, message in (
        ({"weighting": "loss"}, "weighting="),
        ({"n_nodes": 0}, "n_nodes="),
        ({"n_nodes": 2.5}, "n_nodes="),
        ({"stride": 0}, "stride="),
        ({"memory": 0}, "memory="),
    ):
        with pytest.raises(InputError, match=message):
            PathKernelOptions(**options)
    with pytest.raises(InputError, match="rows of shape"):
        path_kernel(run, model, x[:, :2])


def test_time_weighting_refuses_different_learning_rates(tmp_path):
    model = small()
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": list(model[2:].parameters())}]
    run = train(tmp_path / "run", model, optimizer=torch.optim.SGD(groups, lr=0.2))
    assert path_kernel(run, model, data(3)[0], options=PathKernelOptions(weighting="mean")).values.isfinite().all()
    with pytest.raises(InputError, match=r"learning rates \[0.1, 0.2\]"):
        path_kernel(run, model, data(3)[0], options=PathKernelOptions(weighting="time"))


def test_runs_without_steps_and_kernels_that_are_not_finite_are_refused(tmp_path):
    model = small()
    run = train(tmp_path / "none", model, steps=0)
    with pytest.raises(InputError, match="no recorded steps"):
        path_kernel(run, model, data(3)[0])
    run = train(tmp_path / "run", model, steps=2)
    with pytest.raises(NumericalError, match="step 0"):
        path_kernel(run, nn.Sequential(*model), 1e200 * data(3)[0], options=PathKernelOptions(verify=False))
