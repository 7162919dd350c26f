"""Results of kernel machines: save and load to the bit, damaged files refused, text, tables and plots."""

import dataclasses

import numpy as np
import pytest
import torch

from kernelmem.core.errors import FileCorruptError
from kernelmem.kernel_machines.equivalence.compare import compare_kernel_machines
from kernelmem.kernel_machines.equivalence.fidelity import Fidelity, fidelity
from kernelmem.kernel_machines.equivalence.options import ComparisonOptions
from kernelmem.kernel_machines.equivalence.result import KernelMachineComparison
from kernelmem.kernel_machines.linearized.function_space import Linearization, LinearizedTraining
from kernelmem.kernel_machines.linearized.gradient_flow import gradient_descent, gradient_flow
from kernelmem.kernel_machines.linearized.sgd_config import SGDConfig
from kernelmem.kernel_machines.model_selection.leave_one_out import LeaveOneOut, leave_one_out
from kernelmem.kernel_machines.model_selection.ridge_selection import RidgeChoice, choose_ridge
from kernelmem.kernel_machines.solvers.solution import Code, Solution
from kernelmem.kernel_machines.solvers.solve import solve
from kernelmem.testing.kernels import gaussian_kernel
from kernelmem.trajectory.path_kernel.domingos_kernel_machine import DomingosKernelMachine, domingos_kernel_machine
from kernelmem.trajectory.path_kernel.exact_kernel_machine import ExactKernelMachine, exact_kernel_machine
from kernelmem.trajectory.path_kernel.path_kernel import PathKernel, PathKernelOptions, path_kernel
from tests.trajectory.path_kernel.test_path_kernel import data, small, train

RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 3))
Y = RNG.standard_normal((20, 2))
K = gaussian_kernel(X)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One of each, of a small real run."""
    model = small()
    run = train(tmp_path_factory.mktemp("saved") / "run", model, steps=4)
    x, y = data()
    rows = data(3, seed=1)[0]
    machines = compare_kernel_machines(
        run,
        model,
        rows,
        data=(x, y),
        methods=["first_order_ledger", "ridge_final"],
        options=ComparisonOptions(checkpoints=2),
    )
    return [
        path_kernel(run, model, x),
        path_kernel(run, model, x, rows, outputs="full", options=PathKernelOptions(dtype=torch.float32)),
        exact_kernel_machine(run, model, rows),
        domingos_kernel_machine(run, model, rows, data=(x, y)),
        machines,
        choose_ridge(K, Y),
        solve(K, Y, 0.1),
        solve(K - 2.0, Y, 0.1),
        solve(-K, Y, 0.1),
        gradient_descent(K, Y, steps=[0, 3, 9], sgd=SGDConfig(lr=0.1), linearization=Linearization(K_test=K[:4])),
        gradient_flow(K, Y, times=[0.5, np.inf]),
        leave_one_out(K, np.arange(20) % 3, 0.1),
        leave_one_out(K, Y, 0.0),
        fidelity(torch.tensor(Y), torch.tensor(Y[:, ::-1].copy())),
    ]


def same(one, other):
    assert type(one) is type(other)
    for own in dataclasses.fields(one):
        a, b = getattr(one, own.name), getattr(other, own.name)
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype
            assert torch.equal(a, b) or bool(torch.isnan(a).all())
        elif dataclasses.is_dataclass(a):
            same(a, b)
        elif isinstance(a, dict):
            assert list(a) == list(b)
            assert all(torch.equal(a[name], b[name]) for name in a)
        else:
            assert type(a) is type(b)
            assert repr(a) == repr(b), own.name


@pytest.mark.parametrize("index", range(14))
def test_loaded_results_equal_saved_results_to_the_bit(results, index, tmp_path):
    one = results[index]
    path = one.save(tmp_path / "deep" / "result.safetensors")
    found = type(one).load(path)
    same(found, one)
    assert str(found) == str(one)
    content = path.read_bytes()
    for place in (len(content) - 1, len(content) // 2, 60):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        path.write_bytes(bytes(damaged))
        with pytest.raises(FileCorruptError):
            type(one).load(path)
    path.write_bytes(content[:-3])
    with pytest.raises(FileCorruptError):
        type(one).load(path)


def test_each_refuses_the_file_of_another(results, tmp_path):
    kinds = [
        PathKernel,
        ExactKernelMachine,
        DomingosKernelMachine,
        KernelMachineComparison,
        RidgeChoice,
        Solution,
        LinearizedTraining,
        LeaveOneOut,
        Fidelity,
    ]
    paths = [own.save(tmp_path / f"{i}.safetensors") for i, own in enumerate(results)]
    for own, path in zip(results, paths, strict=True):
        for kind in kinds:
            if kind is not type(own):
                with pytest.raises(FileCorruptError, match="format"):
                    kind.load(path)


@pytest.mark.parametrize("index", range(14))
def test_the_text_fits_on_a_screen_and_notebooks_show_a_table(results, index):
    text = repr(results[index])
    assert text == str(results[index])
    assert len(text.splitlines()) <= 40
    assert len(text) < 4000
    assert "tensor(" not in text
    assert len(results[index].to_frame()) > 0
    assert "<table" in results[index]._repr_html_()


def test_many_times_and_checkpoints_are_shortened():
    training = gradient_descent(K, Y, steps=range(200), sgd=SGDConfig(lr=0.1))
    assert len(str(training).splitlines()) <= 40
    assert str(training).splitlines()[-1].split()[0] == "199"


def test_a_loaded_leave_one_out_predicts_as_before(results, tmp_path):
    """Up to rounding: a Cholesky factor is stored column by column and loaded row by row."""
    for index in (11, 12):
        loo = results[index]
        loaded = LeaveOneOut.load(loo.save(tmp_path / f"{index}"))
        rounding = len(K) * np.finfo(float).eps * loo.condition
        assert rounding < 1e-6
        for again, before in (
            (loaded.block([0, 3, 5]), loo.block([0, 3, 5])),
            (loaded.influence(K[:4]), loo.influence(K[:4])),
        ):
            assert float((again - before).norm()) <= rounding * (1 + float(before.norm()))
        assert loaded.condition == pytest.approx(loo.condition, rel=rounding)


def test_codes_are_codes_again(results, tmp_path):
    found = Solution.load(results[7].save(tmp_path / "a"))
    assert found.code is Code.conditionally_positive
    assert found.require() is found
    assert Solution.load(results[8].save(tmp_path / "b")).code is Code.indefinite


def test_a_loaded_path_kernel_and_linearized_training_work_on(results, tmp_path):
    kernel = PathKernel.load(results[0].save(tmp_path / "a"))
    assert (np.asarray(kernel) == np.asarray(results[0])).all()
    found = LinearizedTraining.load(results[9].save(tmp_path / "b"))
    assert torch.equal(found.predict(K[:4]), results[9].predict(K[:4]))
    assert LinearizedTraining.load(results[10].save(tmp_path / "c")).test is None


def test_the_table_and_the_picture_of_a_ridge_choice():
    choice = choose_ridge(K, Y)
    frame = choice.to_frame()
    assert frame["ridge"].tolist() == choice.grid.tolist()
    assert frame["error"].tolist() == choice.errors.tolist()
    assert frame.index[frame["chosen"]].tolist() == [choice.index]
    axes = choice.plot().get_axes()[0]
    line, mark = axes.get_lines()
    assert line.get_xydata().tolist() == np.stack([choice.grid, choice.errors], 1).tolist()
    assert mark.get_xydata().tolist() == [[choice.ridge, float(choice.errors[choice.index])]]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert not axes.texts
    errors = choice.errors.clone()
    errors[:30] = torch.inf
    part = RidgeChoice(float(choice.grid[30]), 30, choice.grid, errors)
    axes = part.plot().get_axes()[0]
    assert len(axes.get_lines()[0].get_xydata()) == len(choice.grid) - 30
    assert "too small" in axes.texts[0].get_text()
    assert "edge" in axes.get_title(loc="left")
    assert choose_ridge(torch.eye(5), torch.zeros(5)).plot().get_axes()[0].get_yscale() == "linear"


def test_the_table_of_leave_one_out():
    labels = np.arange(20) % 3
    found = leave_one_out(K, labels, 0.1)
    frame = found.to_frame()
    assert list(frame.columns) == ["leverage", "squared_error", "label", "predicted", "memorization", "margin"]
    assert frame["memorization"].tolist() == found.memorization.tolist()
    assert frame["margin"].tolist() == found.margin.tolist()
    assert frame["leverage"].tolist() == found.leverage.tolist()
    assert frame["label"].tolist() == labels.tolist()
    assert ((frame["margin"] > 0) == (frame["label"] == frame["predicted"])).all()
    assert np.allclose(frame["squared_error"], found.errors.square().sum(1))
    assert list(leave_one_out(K, Y, 0.1).to_frame().columns) == ["leverage", "squared_error"]


def test_the_tables_of_linearized_training_and_of_the_machines_along_a_run(results):
    found = results[9]
    frame = found.to_frame().set_index(["time", "part", "row", "output"])["value"]
    assert len(frame) == 3 * (20 + 4) * 2
    assert frame[3, "train", 7, 1] == float(found.train[1, 7, 1])
    assert frame[9, "test", 2, 0] == float(found.test[2, 2, 0])
    assert set(results[10].to_frame()["part"]) == {"train"}

    lifted = results[2]
    frame = lifted.to_frame()
    summed = frame.groupby(["row", "example", "output"], sort=False)["contribution"].sum()
    contributions = lifted.contributions()
    for row, example, k in ((0, 0, 0), (2, int(lifted.examples[3]), 1)):
        assert summed[row, example, lifted.names[k]] == pytest.approx(float(contributions[row, example, k]), abs=1e-14)
    line = frame.iloc[-1]
    assert (line["step"], line["example"]) == (int(lifted.steps[-1]), int(lifted.examples[-1]))

    form = results[3]
    frame = form.to_frame()
    totals = frame.groupby(["row", "output"])["contribution"].sum().to_numpy().reshape(form.initial.shape)
    assert np.allclose(totals, (form.predictions - form.initial).numpy(), atol=1e-14)
    assert frame.set_index(["row", "example", "output"])["contribution"][1, 5, 2] == -float(form.weighted[1, 5, 2])
