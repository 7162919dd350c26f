"""The artefact: checks of models trained elsewhere, statistics in blocks, files and texts."""

import numpy as np
import pytest
import torch

from kernelmem.core import InputError, NumericalError
from kernelmem.memorization import ShadowEnsemble
from kernelmem.memorization.output_statistics import label_statistic
from kernelmem.memorization.shadows import ShadowIdentity
from kernelmem.memorization.shadows import ensemble as module

MASKS = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1], [1, 0, 1, 1]])
LABELS = torch.tensor([0, 2, 1, 1])


def logits(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_models_trained_elsewhere(tmp_path):
    given = logits(3, 4, 3), logits(3, 2, 3)
    ensemble = ShadowEnsemble.from_logits(
        MASKS.numpy(), given[0].numpy(), LABELS.int(), test_logits=given[1], test_labels=[0, 1]
    )
    assert torch.equal(ensemble.logits, given[0])
    assert torch.equal(ensemble.test_logits, given[1])
    assert torch.equal(ensemble.masks, MASKS.bool())
    assert (ensemble.n_models, ensemble.n_rows, ensemble.n_test, ensemble.n_classes) == (3, 4, 2, 3)
    assert ensemble.identity.share == 0.75
    loaded = ShadowEnsemble.load(ensemble.save(tmp_path / "shadows.safetensors"))
    assert torch.equal(loaded.logits, given[0])
    assert loaded.identity == ensemble.identity
    assert str(loaded) == str(ensemble)


def test_one_logit_becomes_two_outputs_and_float64_stays():
    z = logits(3, 4).double()
    for given in (z, z[:, :, None]):
        ensemble = ShadowEnsemble.from_logits(MASKS, given, [0, 1, 1, 0])
        assert ensemble.logits.dtype == torch.float64
        assert torch.equal(ensemble.logits[:, :, 1], z)
        assert int(ensemble.logits[:, :, 0].count_nonzero()) == 0


def test_real_targets_keep_one_output():
    targets = logits(4, 1)
    ensemble = ShadowEnsemble.from_logits(
        MASKS, logits(3, 4, 1), targets, test_logits=logits(3, 2, 1), test_labels=targets[:2]
    )
    assert ensemble.n_classes == 1
    expected = -0.5 * (logits(3, 4, 1).double() - targets.double()).square().sum(2)
    torch.testing.assert_close(ensemble.statistic("log_likelihood"), expected)
    assert "squared error" in str(ensemble)
    assert "squared_error_without" in ensemble.to_frame()


@pytest.mark.parametrize("statistic", ["correct", "logit"])
def test_statistics_in_blocks_equal_those_at_once(statistic, monkeypatch):
    ensemble = ShadowEnsemble.from_logits(MASKS, logits(3, 4, 3), LABELS)
    expected = label_statistic(ensemble.logits, LABELS, statistic)
    monkeypatch.setattr(module, "BLOCK_VALUES", 1)
    assert torch.equal(ensemble.statistic(statistic), expected)


def test_the_frame_has_the_accuracy_with_and_without_each_row():
    ensemble = ShadowEnsemble.from_logits(MASKS, logits(3, 4, 3), LABELS)
    frame, correct = ensemble.to_frame(), ensemble.statistic("correct")
    assert frame.models_with.tolist() == [2, 2, 2, 3]
    assert frame.accuracy_with[0] == float(correct[[0, 2], 0].mean())
    assert frame.accuracy_without[0] == float(correct[1, 0])
    assert np.isnan(frame.accuracy_without[3])


def test_the_text_says_where_models_are_right():
    one_hot = torch.eye(3)[LABELS].expand(3, 4, 3)
    right_where_trained = one_hot * (2.0 * MASKS[:, :, None] - 1)
    text = str(ShadowEnsemble.from_logits(MASKS, right_where_trained, LABELS))
    assert "1 on rows trained on, 0 on rows left out" in text
    assert "trained on by 2 to 3 models, left out by 0 to 1" in text


def test_a_choice_of_models():
    ensemble = ShadowEnsemble.from_logits(MASKS, logits(3, 4, 3), LABELS)
    for chosen in (torch.tensor([2, 0]), torch.tensor([True, False, True])):
        assert torch.equal(ensemble.select(chosen).logits, ensemble.logits[chosen])
    assert torch.equal(ensemble.select([2, 0]).masks, ensemble.masks[[2, 0]])


@pytest.mark.parametrize("models", [[3], [-1], [], [0.0], [True, False], torch.ones(4, dtype=torch.bool)])
def test_models_that_are_not_there_are_refused(models):
    with pytest.raises(InputError, match=r"as whole numbers in 0\.\.2"):
        ShadowEnsemble.from_logits(MASKS, logits(3, 4, 3), LABELS).select(models)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": MASKS[:1]}, "m >= 2 models"),
        ({"masks": MASKS * 2}, "masks with values from 0 to 2"),
        ({"logits": logits(2, 4, 3)}, "for 3 models and 4 rows"),
        ({"logits": logits(4, 3, 3)}, "models along the first axis"),
        ({"labels": [0, 1, 2, 3]}, "values outside 0..2"),
        ({"labels": torch.rand(4, 2)}, r"expected \(4,\) labels, or \(4, 3\) real targets"),
        ({"test_logits": logits(3, 2, 3)}, "test_logits alone"),
        ({"test_logits": logits(3, 2, 2), "test_labels": [0, 1]}, "for 3 outputs"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    arguments = {"masks": MASKS, "logits": logits(3, 4, 3), "labels": LABELS, **changes}
    with pytest.raises(InputError, match=message):
        ShadowEnsemble.from_logits(
            arguments.pop("masks"), arguments.pop("logits"), arguments.pop("labels"), **arguments
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"masks": MASKS[:, :3].bool()}, {"masks": MASKS.long()}, {"logits": logits(3, 4, 1)}, {"logits": logits(3, 4, 3)[0]},
        {"labels": torch.zeros(3, dtype=torch.int64)}, {"labels": torch.zeros(4, 2)}, {"labels": torch.full((4,), 3)},
        {"labels": torch.full((4,), -1)}, {"test_logits": logits(2, 0, 3)}, {"test_logits": logits(3, 0, 2)},
        {"test_logits": logits(3, 2, 3)}, {"test_logits": torch.zeros(3)}, {"test_logits": torch.zeros(())},
    ],
)  # fmt: skip
def test_fields_that_do_not_fit_each_other_are_refused(changes):
    fields = {"masks": MASKS.bool(), "logits": logits(3, 4, 3), "labels": torch.zeros(4, dtype=torch.int64)}
    fields |= {"test_logits": logits(3, 0, 3), "test_labels": torch.zeros(0, dtype=torch.int64)}
    assert ShadowEnsemble(**fields, identity=ShadowIdentity()).n_classes == 3
    with pytest.raises(InputError):
        ShadowEnsemble(**(fields | changes), identity=ShadowIdentity())


def test_diverged_models_are_named():
    values = logits(3, 4, 3)
    values[1, 2, 0], values[2, 0, 0] = torch.nan, torch.inf
    with pytest.raises(NumericalError, match="of models 1, 2"):
        ShadowEnsemble.from_logits(MASKS, values, LABELS)
    with pytest.raises(NumericalError, match=r"test_logits.*of models 1, 2"):
        ShadowEnsemble.from_logits(MASKS, logits(3, 4, 3), LABELS, test_logits=values, test_labels=LABELS)
