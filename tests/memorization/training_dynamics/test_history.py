import numpy as np
import pytest
import torch

import kernelmem as km
from kernelmem.memorization.training_dynamics import HistoryRecorder, TrainingHistory
from tests.tolerances import summing

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(3, 5, 4, generator=GENERATOR, dtype=torch.float64)
LABELS = [0, 1, 2, 3, 0]


def test_one_run_has_a_leading_axis_and_one_logit_two_columns():
    history = TrainingHistory.from_arrays(LOGITS, LABELS)
    assert history.logits.shape == (1, 3, 5, 4)
    assert (history.n_runs, history.n_checkpoints, history.n_rows) == (1, 3, 5)
    binary = TrainingHistory.from_arrays(LOGITS[..., :1], [0, 1, 1, 0, 1])
    assert torch.equal(binary.logits[0, ..., 1], LOGITS[..., 0])
    assert torch.equal(binary.statistic("margin")[0, :, 0], -LOGITS[:, 0, 0])


def test_a_history_does_not_share_memory_with_its_arguments():
    logits, labels = LOGITS.clone(), torch.tensor(LABELS)
    history = TrainingHistory.from_arrays(logits, labels)
    logits += 1
    labels += 1
    assert torch.equal(history.logits[0], LOGITS)
    assert history.labels.tolist() == LABELS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logits": LOGITS[0]}, "stack the outputs"),
        ({"logits": LOGITS[..., 0]}, "shape"),
        ({"logits": torch.full_like(LOGITS, torch.nan)}, "NaN"),
        ({"labels": [0, 1, 2, 3]}, "5 labels"),
        ({"labels": [1, 2, 3, 4, 1]}, "outside 0..3"),
        ({"labels": ["a", "b", "c", "d", "a"]}, "return_inverse"),
        ({"labels": [0.1, 0.2, 0.3, 0.4, 0.5]}, "in the shape of the outputs"),
        ({"steps": [1, 1, 2]}, "that increase"),
        ({"steps": [0.5, 1, 2]}, "whole numbers"),
        ({"steps": [1, 2]}, "steps of shape"),
        ({"learning_rates": [0.1]}, "learning_rates of shape"),
        ({"gradient_norms": torch.ones(3, 4)}, "gradient_norms of shape"),
        ({"gradient_norms": -torch.ones(3, 5)}, ">= 0"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(km.InputError, match=message):
        TrainingHistory.from_arrays(**({"logits": LOGITS, "labels": LABELS} | arguments))


def test_histories_of_the_same_rows_are_joined():
    one = TrainingHistory.from_arrays(LOGITS, LABELS, gradient_norms=torch.ones(3, 5), learning_rates=[1, 2, 3])
    two = TrainingHistory.from_arrays((LOGITS + 1).float(), LABELS, gradient_norms=torch.zeros(3, 5))
    joined = TrainingHistory.join([one, two])
    assert joined.logits.shape == (2, 3, 5, 4)
    assert joined.logits.dtype == torch.float64
    assert joined.gradient_norms.sum() == 15
    assert joined.learning_rates is None
    for other in (
        TrainingHistory.from_arrays(LOGITS, [1, *LABELS[1:]]),
        TrainingHistory.from_arrays(LOGITS, LABELS, steps=[1, 2, 4]),
        TrainingHistory.from_arrays(LOGITS[:, :4], LABELS[:4]),
    ):
        with pytest.raises(km.InputError, match="the same rows, labels and steps"):
            TrainingHistory.join([one, other])
    for junk in ([], [LOGITS], None):
        with pytest.raises(km.InputError):
            TrainingHistory.join(junk)


def test_a_history_is_printed_saved_and_loaded(tmp_path):
    history = TrainingHistory.from_arrays(LOGITS, LABELS, learning_rates=[0.1, 0.1, 0.2])
    assert "5 rows, 4 outputs: 1 run, 3 checkpoints at steps 1, 2, 3" in str(history)
    loaded = TrainingHistory.load(history.save(tmp_path / "history.safetensors"))
    assert torch.equal(loaded.logits, history.logits)
    assert torch.equal(loaded.learning_rates, history.learning_rates)


def test_the_recorder_sorts_batches_by_index():
    recorder = HistoryRecorder(LABELS)
    norms = torch.rand(3, 5, generator=GENERATOR, dtype=torch.float64)
    inputs = torch.randn(3, 5, 2, 3, generator=GENERATOR, dtype=torch.float64)
    for t in range(3):
        for rows in np.random.default_rng(t).permutation(5)[:2], np.random.default_rng(t).permutation(5)[2:]:
            batch = {"gradient_norms": norms[t, rows], "input_gradients": inputs[t, rows]}
            recorder.update(10 * t, LOGITS[t, rows], rows, **batch)
    history = recorder.history(learning_rates=[3, 2, 1])
    assert torch.equal(history.logits[0], LOGITS)
    assert torch.equal(history.gradient_norms[0], norms)
    assert history.steps.tolist() == [0, 10, 20]
    variance = inputs.var(0, correction=0).mean((1, 2))
    size = float(inputs.square().max())
    assert torch.allclose(history.input_gradient_variance[0], variance, rtol=0, atol=summing(3, 6) * size)


def test_the_recorder_takes_one_logit_and_all_rows_in_order():
    recorder = HistoryRecorder([0, 1])
    recorder.update(1, torch.tensor([[1.0], [2.0]]).half())
    recorder.update(2, torch.tensor([[1.0], [3.0]], dtype=torch.float64))
    history = recorder.history()
    assert history.logits.dtype == torch.float64
    assert history.statistic("margin")[0].tolist() == [[-1, 2], [-1, 3]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": 0}, "step 0 after step 1"),
        ({"step": 1, "indices": [0, 3]}, "row 0 twice at step 1"),
        ({"step": 2}, r"without 3 of 5 rows \(the first: row 2\)"),
        ({"indices": [3, 3]}, "repeat"),
        ({"indices": [3, 5]}, r"in 0..4"),
        ({"indices": [0.5, 1.5]}, r"in 0..4"),
        ({"indices": None}, "without indices"),
        ({"logits": LOGITS[0, 0]}, "one batch"),
        ({"logits": LOGITS[0, :2, :2]}, "outside 0..1"),
        ({"logits": torch.zeros(2, 5)}, "5 outputs after 4"),
        ({"gradient_norms": [1.0, 2.0]}, "in some calls only"),
        ({"input_gradients": [[1.0], [2.0]]}, "in some calls only"),
        ({"step": 1.5}, "whole number"),
    ],
)
def test_the_recorder_refuses_what_does_not_fit_and_stays_as_it_was(arguments, message):
    recorder = HistoryRecorder(LABELS)
    recorder.update(1, LOGITS[0, :2], [0, 1])
    with pytest.raises(km.InputError, match=message):
        recorder.update(**({"step": 1, "logits": LOGITS[0, 2:4], "indices": [2, 3]} | arguments))
    recorder.update(1, LOGITS[0, 2:], [2, 3, 4])
    assert torch.equal(recorder.history().logits[0, 0], LOGITS[0])


def test_an_empty_or_unfinished_recorder_has_no_history():
    recorder = HistoryRecorder(LABELS)
    with pytest.raises(km.InputError, match="without checkpoints"):
        recorder.history()
    recorder.update(1, LOGITS[0, :2], [0, 1])
    with pytest.raises(km.InputError, match="drop_last=False"):
        recorder.history()
