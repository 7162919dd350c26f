"""Honest predictors pass all checks; every cheat and every fault is found by the check that is named for it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kernelmem.compression import KernelPredictor, OnlineOptions
from kernelmem.compression.verification import Verification, verify_code
from kernelmem.compression.verification.verify import _check_carries
from kernelmem.core import InputError
from tests.compression.verification import predictors as make

N, C = 40, 3
X, Y = make.data(N, C)
REPOSITORY = Path(__file__).parents[3]


def assert_honest(k):
    predictor, x, y = make.honest(k)
    result = verify_code(predictor, x, y, positions=8, seed=k)
    assert result.ok, result
    assert result.rows_decoded == len(y)
    assert -1 <= result.stream - result.ideal <= 48
    assert {check.name for check in result.checks if check.status == "note"} <= {"future inputs", "carries"}


@pytest.mark.parametrize("k", range(12))
def test_honest_predictors_pass(k, quick):
    assert_honest(k)


@pytest.mark.soak
@pytest.mark.parametrize("k", range(12, 100))
def test_more_honest_predictors_pass(k, quick):
    assert_honest(k)


CHEATS = [
    (make.KernelTrainedOnLabels(C), "causal"),
    (make.KernelTrainedOnLabels(C), "random labels"),
    (make.KernelBroughtAlong(C, make.KernelTrainedOnLabels(C).kernel(X, Y)), "carries"),
    (make.LeaveOneOut(C), "causal"),
    (make.HindsightTemperature(C), "causal"),
    (make.LargerOfTwo(C), "alphabet"),
    (make.TrueLabelOnly(C), "causal"),
    (make.SecondPass(C), "causal"),
    (make.TopK(C), "alphabet"),
    (make.RowsDropped(C), "predicts"),
    (make.RowsTwice(C), "predicts"),
    (make.BatchNorm(C), "alone = in batch"),
    (make.Dropout(C), "repeats"),
    (make.ThreadDependent(C), "decodes"),
    (make.SequentialOtherwise(C), "alone = in batch"),
    (make.FutureLabelsByState(C), "causal"),
    (make.OwnLabelOfFewRows(C), "decodes"),
]


@pytest.mark.parametrize(("cheat", "name"), CHEATS, ids=[f"{type(cheat).__name__}, {name}" for cheat, name in CHEATS])
def test_cheats_are_found(cheat, name, quick):
    result = verify_code(cheat, X, Y, positions=16)
    assert name in result.failed, result
    assert not result.ok


def test_a_leak_does_not_decode(quick):
    """Leave-one-out predictions encode the labels in few bits, but a decoder cannot compute them."""
    result = verify_code(make.LeaveOneOut(C), X, Y, positions=4)
    assert "decodes" in result.failed
    assert result.ideal < result.uniform / 2


@pytest.mark.parametrize("kind", ["file", "names", "inputs"])
def test_labels_that_are_known_from_elsewhere_are_noted(kind, quick, tmp_path):
    """A model that was trained on other data knows labels too: only its author can tell one from the other."""
    x = np.c_[X, Y]
    predictor = {
        "file": make.LabelsInAFile(str(tmp_path / "labels.npy"), C),
        "names": make.LabelsAsNames(Y, C),
        "inputs": make.LabelsInTheInputs(C),
    }[kind]
    result = verify_code(predictor, x, Y, positions=4)
    assert result.ok
    (note,) = [check for check in result.checks if check.name == "random labels"]
    assert note.status == "note"
    assert "from elsewhere" in str(result).replace("\n    ", " ")


@pytest.mark.parametrize("hide", [bytes, tuple, "".join, torch.tensor, np.array, frozenset, "module", "closure"])
def test_labels_brought_along_are_found(hide, quick):
    y = make.data(700, 5)[1]
    if hide == "closure":
        labels = y.copy()

        def predictor(x, y):
            return 0.999 * np.eye(5)[labels] + 0.001 / 5
    elif hide == "module":
        module = torch.nn.Module()
        module.register_buffer("labels", torch.from_numpy(y))
        predictor = make.LabelsBroughtAlong(module, 5)
    elif hide is frozenset:
        predictor = make.LabelsBroughtAlong(frozenset(enumerate(y.tolist())), 5)
    else:
        predictor = make.LabelsBroughtAlong(hide(map(str, y)) if hide == "".join else hide(y.tolist()), 5)
    from kernelmem.compression.verification.carrying import pickled

    _, carried = pickled(predictor)
    assert carried > 700 * np.log2(5)


@pytest.mark.parametrize("claim", ["every second row", "every row twice", "other labels", "correct", "of the stream"])
def test_lengths_of_other_rows_or_labels_are_found(claim, quick):
    predictor = make.Counting(C)
    bits = -np.log2(predictor(X, Y)[np.arange(N), Y])
    claimed = {
        "every second row": bits[::2].sum(),
        "every row twice": 2 * bits.sum(),
        "other labels": -np.log2(predictor(X, Y)[:, 0]).sum() - 5,
        "correct": bits.sum(),
        "of the stream": verify_code(predictor, X, Y, positions=4).stream,
    }[claim]
    result = verify_code(predictor, X, Y, positions=4, claimed=claimed)
    assert result.ok == (claim in ("correct", "of the stream"))
    assert result.failed == (() if result.ok else ("once",))


@pytest.mark.parametrize("fault", ["raises", "NaN", "shape", "rows", "columns", "text", "None"])
def test_faults_are_reported(fault):
    result = verify_code(make.Faulty(fault), X, Y)
    assert result.failed == ("predicts",)
    assert "the predictor " in str(result)


def test_what_is_not_a_distribution_is_reported():
    for fault in ("negative", "logits"):
        result = verify_code(make.Faulty(fault), X, Y, positions=4)
        assert "alphabet" in result.failed
        assert "not run" in [check.status for check in result.checks if check.name == "decodes"]


def test_a_predictor_that_hangs_is_given_up():
    result = verify_code(make.Faulty("hangs"), X, Y, timeout=0.2)
    assert result.failed == ("predicts",)
    assert "did not return within 0.2 s" in str(result)


def test_a_predictor_that_cannot_be_pickled_is_not_verified():
    lock = __import__("threading").Lock()

    def predictor(x, y):
        with lock:
            return np.full((len(y), C), 1 / C)

    result = verify_code(predictor, X, Y, positions=4)
    assert not result.ok
    assert not result.failed
    assert {check.name for check in result.checks if check.status == "not run"} == {"decodes", "once", "carries"}


def test_without_time_a_beginning_is_decoded_and_other_rows_are_compared(quick):
    result = verify_code(make.Slow(C), X, Y, positions=4, timeout=2.0)
    assert result.ok, result
    assert 0 < result.rows_decoded < N
    assert "4 later rows" in str(result)


def test_the_decoder_steps_through_a_predictor_that_can(quick):
    assert verify_code(make.SequentialThere(C), X, Y, positions=4).rows_decoded == N


def test_learners_that_need_two_classes_are_decoded(quick):
    y = np.r_[np.zeros(2), 1, 2, Y[4:]]
    assert verify_code(make.NeedsTwoClasses(C), X, y, positions=4).ok


def test_transductive_predictors_are_reported_and_pass(quick):
    result = verify_code(make.Blocks(C), X, Y, positions=4)
    assert result.ok
    assert {check.name: check.status for check in result.checks}["future inputs"] == "note"


def test_online_predictors_pass(quick):
    options = OnlineOptions(ridges=(0.1, 1.0), temperatures=(0.5,), floors=(0.1,))
    result = verify_code(KernelPredictor(make.gaussian_kernel, C, options), X, Y, positions=4)
    assert result.ok, result
    assert result.rows_decoded == N


def test_float32_probabilities_cast_to_float64_are_refused_with_the_reason(quick):
    def predictor(x, y):
        return torch.linspace(0, 3, len(y) * C).reshape(len(y), C).softmax(1).double() * (1 + 1e-6)

    (reason,) = [
        check.explanation for check in verify_code(predictor, X, Y, positions=4).checks if check.name == "alphabet"
    ]
    assert "rounding of float32" in reason


def test_arguments_and_random_states_are_left_alone(quick):
    def predictor(x, y):
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        x *= 0
        y[:] = 0
        return torch.full((len(y), C), 1 / C)

    x, y = torch.from_numpy(X.copy()), torch.from_numpy(Y.copy())
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    verify_code(predictor, x, y, positions=4)
    assert torch.equal(x, torch.from_numpy(X))
    assert torch.equal(y, torch.from_numpy(Y))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002


def test_one_class_and_one_row(quick):
    assert verify_code(make.Uniform(1), X, np.zeros(N)).ok
    for predictor in (make.Uniform(2), make.Counting(2), make.OnlineKernel(2)):
        assert verify_code(predictor, X[:1], [1]).ok


def test_results_are_tables_and_files(quick, tmp_path):
    result = verify_code(make.LargerOfTwo(C), X, Y, positions=4)
    assert result.to_frame()["name"].tolist() == [check.name for check in result.checks]
    loaded = Verification.load(result.save(tmp_path / "v.safetensors"))
    assert str(loaded) == str(result)
    assert "NOT verified" in str(result)


@pytest.mark.parametrize(
    "arguments",
    [
        {"predictor": 3},
        {"predictor": lambda x: x},
        {"x": X[:3]},
        {"x": np.zeros((0, 4)), "y": []},
        {"y": Y - 1},
        {"y": Y, "n_classes": 2},
        {"positions": 0},
        {"seed": -1},
        {"timeout": 0},
        {"timeout": np.nan},
        {"claimed": -1},
    ],
)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(InputError):
        verify_code(**({"predictor": make.Uniform(C), "x": X, "y": Y} | arguments))


SCRIPT = """
import numpy as np, kernelmem as km
OPTIONS = {"constant": 0.5}
class Mine:
    def __call__(self, x, y):
        print("a predictor that prints")
        before = np.cumsum(np.eye(3)[y], axis=0) - np.eye(3)[y] + OPTIONS["constant"]
        return before / before.sum(1, keepdims=True)
y = np.random.default_rng(0).integers(0, 3, 30)
result = km.verify_code(%s, np.zeros((30, 1)), y, positions=4)
assert result.ok == %s, result
print(result)
"""
IN_THE_OTHER_PROCESS = '"KERNELMEM_DECODER_THREADS" in __import__("os").environ'


@pytest.mark.soak
@pytest.mark.parametrize(
    ("predictor", "ok", "text"),
    [
        ("Mine()", True, "30 of 30 labels"),
        (f"lambda x, y: __import__('os')._exit(3) if {IN_THE_OTHER_PROCESS} else Mine()(x, y)", False, "code 3"),
        (f"lambda x, y: 1 / 0 if {IN_THE_OTHER_PROCESS} else Mine()(x, y)", False, "division by zero"),
    ],
)
def test_a_script_without_main_guard_can_verify(predictor, ok, text):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT % (predictor, ok)], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr
    assert text in run.stdout


@pytest.mark.soak
def test_a_predictor_that_hangs_in_the_other_process_is_given_up(monkeypatch):
    from kernelmem.compression.verification import decoding

    monkeypatch.setattr(decoding, "START_SECONDS", 15.0)

    def predictor(x, y):
        if "KERNELMEM_DECODER_THREADS" in os.environ:
            __import__("time").sleep(1000)
        return np.full((len(y), C), 1 / C)

    result = verify_code(predictor, X, Y, positions=4, timeout=5.0)
    assert result.failed == ("decodes",)
    assert "did not return within" in str(result)


@pytest.mark.parametrize(
    ("carried", "saved", "status"),
    [
        (100, 300.0, "passed"),
        (400, 300.0, "note"),
        (3000, 300.0, "failed"),
        (3000, 4000.0, "passed"),
        (100, -3.0, "passed"),
    ],
)
def test_values_that_exceed_the_savings_are_reported(carried, saved, status):
    check = _check_carries(carried, "", saved)
    assert check.status == status
    assert bool(check.explanation) == (status != "passed")
