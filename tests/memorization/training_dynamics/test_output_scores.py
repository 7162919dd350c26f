import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kernelmem as km
from kernelmem.memorization import training_dynamics
from kernelmem.memorization.training_dynamics import TrainingHistory
from tests.memorization.training_dynamics import definitions
from tests.profiles import examples
from tests.tolerances import summing

SCORES = {name: getattr(training_dynamics, name) for name in definitions.SCORES}


@st.composite
def histories(draw, whole=None):
    """Outputs of R runs with ties and repeated values, in float32 or float64."""
    R, T, n, C = (draw(st.integers(low, high)) for low, high in ((1, 3), (1, 6), (1, 5), (2, 4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    whole = draw(st.booleans()) if whole is None else whole
    logits = rng.integers(-2, 3, (R, T, n, C)).astype(float) if whole else 2 * rng.standard_normal((R, T, n, C))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    steps = np.cumsum(rng.integers(1, 5, T)) - draw(st.integers(0, 1))
    if steps[-1] == 0:
        steps += 1
    return TrainingHistory.from_arrays(torch.tensor(logits, dtype=dtype), rng.integers(0, C, n), steps=steps)


@pytest.mark.parametrize("name", SCORES)
@examples(0.5)
@given(history=histories())
def test_scores_are_the_means_of_their_definition(name, history):
    score = SCORES[name](history)
    steps = history.steps.tolist()
    values = torch.tensor(
        [
            [
                getattr(definitions, name)(history.logits[r, :, i].tolist(), int(history.labels[i]), steps)
                for i in range(history.n_rows)
            ]
            for r in range(history.n_runs)
        ],
        dtype=torch.float64,
    )
    size = float(values.abs().max()) + float(history.logits.abs().max()) * history.n_checkpoints
    tolerance = summing(history.n_checkpoints + history.logits.shape[-1] + history.n_runs) * max(size, 1)
    assert torch.allclose(score.values, values.mean(0), rtol=0, atol=tolerance)
    if history.n_runs == 1:
        assert score.standard_error is None
        assert score.level == "model"
    else:
        expected = values.std(0) / history.n_runs**0.5
        assert torch.allclose(score.standard_error, expected, rtol=0, atol=max(tolerance, tolerance**0.5 * 1e-3))
        assert score.level == "algorithm"
    assert score.n_models == history.n_runs


@pytest.mark.parametrize("name", SCORES)
@examples(0.3)
@given(history=histories(), seed=st.integers(0, 2**32 - 1))
def test_order_of_rows_names_of_classes_and_shifts_do_not_matter(name, history, seed):
    rng = np.random.default_rng(seed)
    values = SCORES[name](history).values
    tolerance = summing(20) * max(1.0, float(values.abs().max()), float(history.logits.abs().max()) * 8)
    rows = rng.permutation(history.n_rows)
    shuffled = TrainingHistory.from_arrays(history.logits[:, :, rows], history.labels[rows], steps=history.steps)
    assert torch.allclose(SCORES[name](shuffled).values, values[rows], rtol=0, atol=tolerance)
    classes = rng.permutation(history.logits.shape[-1])
    renamed = torch.empty_like(history.logits)
    renamed[..., classes] = history.logits
    labels = torch.from_numpy(classes)[history.labels]
    after = SCORES[name](TrainingHistory.from_arrays(renamed, labels, steps=history.steps)).values
    assert torch.allclose(after, values, rtol=0, atol=tolerance)
    # in float64 and by powers of 2, so that differences of outputs are exact for the small whole numbers of ties
    shift = torch.from_numpy(2.0 ** rng.integers(-2, 3, (*history.logits.shape[:3], 1)))
    whole = torch.round(history.logits.double() * 4) / 4
    before = SCORES[name](TrainingHistory.from_arrays(whole, history.labels, steps=history.steps)).values
    shifted = SCORES[name](TrainingHistory.from_arrays(whole + shift, history.labels, steps=history.steps)).values
    assert torch.allclose(shifted, before, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", SCORES)
def test_larger_is_more_memorized(name):
    """A row that is fitted late has a larger score than one that is fitted at once."""
    progress = torch.linspace(0, 1, 11, dtype=torch.float64)
    early, late = 8 * (progress > 0.05) - 4, 8 * (progress > 0.75) - 4
    wavering = late * torch.tensor([1, 1, -1, 1, -1, 1, 1, 1, 1, 1, 1])
    outputs = torch.stack([early, wavering], 1)[..., None]
    history = TrainingHistory.from_arrays(outputs, [1, 1], steps=range(11))
    values = SCORES[name](history).values
    assert values[1] > values[0]


def test_a_row_that_was_never_right_counts_as_more_than_all_events():
    wavering = [1.0, -1.0] * 5
    history = TrainingHistory.from_arrays(torch.tensor([wavering, [-1.0] * 10]).T[..., None], [1, 1])
    assert training_dynamics.forgetting_events(history).values.tolist() == [5, 11]
    assert training_dynamics.learned_at(history).values.tolist() == [11, 11]


def test_early_scores_take_the_checkpoint_near_a_tenth_of_the_training():
    logits = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
    history = TrainingHistory.from_arrays(logits, [0, 1, 2, 0], steps=[0, 5, 11, 20, 50, 100])
    assert training_dynamics.el2n(history).name == "EL2N at step 11"
    assert torch.equal(training_dynamics.el2n(history, step=11).values, training_dynamics.el2n(history).values)
    assert training_dynamics.el2n(history, step=0).name == "EL2N at step 0"
    with pytest.raises(km.InputError, match="one of the 6 checkpoints"):
        training_dynamics.el2n(history, step=12)
    with pytest.raises(km.InputError, match="initial weights only"):
        training_dynamics.el2n(TrainingHistory.from_arrays(logits[:1], [0, 1, 2, 0], steps=[0]))


def test_real_targets_have_cumulative_loss_and_el2n_only():
    logits, targets = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]]), torch.tensor([[0.0, 0.5]])
    history = TrainingHistory.from_arrays(logits, targets)
    assert training_dynamics.cumulative_loss(history).values.tolist() == [(1 + 1.5**2) / 2 + 0.125]
    assert training_dynamics.el2n(history, step=2).values.tolist() == [0.5]
    for name in set(SCORES) - {"cumulative_loss", "el2n"}:
        with pytest.raises(km.InputError, match="real targets"):
            SCORES[name](history)


@examples(0.5)
@given(first=histories(), seed=st.integers(0, 2**32 - 1))
def test_second_split_forgetting_is_its_definition(first, seed):
    rng = np.random.default_rng(seed)
    R, _, n, C = first.logits.shape
    logits = rng.integers(-1, 2, (R, 4, n, C)).astype(float)
    second = TrainingHistory.from_arrays(logits, first.labels, steps=[0, 2, 3, 7])
    values = torch.zeros(R, n, dtype=torch.float64)
    for r in range(R):
        for i in range(n):
            y = int(first.labels[i])
            if definitions.is_right(first.logits[r, -1, i].tolist(), y):
                right = [definitions.is_right(z.tolist(), y) for z in second.logits[r, :, i]]
                values[r, i] = -next((s for t, s in enumerate([0, 2, 3, 7]) if not any(right[t:])), 8)
    assert torch.allclose(
        training_dynamics.second_split_forgetting(first, second).values, values.mean(0), rtol=0, atol=summing(R) * 8
    )


def test_second_split_forgetting_needs_the_same_rows():
    first, second = (TrainingHistory.from_arrays(torch.zeros(1, n, 2), [0] * n) for n in (2, 3))
    with pytest.raises(km.InputError, match="the same rows and labels"):
        training_dynamics.second_split_forgetting(first, second)
