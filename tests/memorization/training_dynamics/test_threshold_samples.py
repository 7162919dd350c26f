import pytest
import torch

import kernelmem as km
from kernelmem.memorization.training_dynamics import ThresholdSamples, TrainingHistory, threshold_samples


def test_each_training_relabels_other_rows():
    labels = torch.arange(60) % 5
    samples = threshold_samples(labels, seed=1)
    assert samples.masks.sum(1).tolist() == [10, 10]
    assert not bool((samples.masks[0] & samples.masks[1]).any())
    for k in range(2):
        assert bool((samples.labels[k][samples.masks[k]] == 5).all())
        assert torch.equal(samples.labels[k][~samples.masks[k]], labels[~samples.masks[k]])
    assert torch.equal(threshold_samples(labels, seed=1).masks, samples.masks)
    assert not torch.equal(threshold_samples(labels, seed=2).masks, samples.masks)
    assert threshold_samples(labels, seed=1, n_classes=9).labels.max() == 9


def test_rows_are_judged_by_the_training_in_which_their_label_was_real(tmp_path):
    labels = torch.zeros(20, dtype=torch.int64)
    labels[10:] = 1
    samples = threshold_samples(labels, seed=0)
    wrong = int(samples.masks[0].nonzero()[0])  # a threshold sample of the first training, judged by the second
    histories = []
    for k in range(2):
        margins = torch.full((20,), 4.0)
        margins[wrong] = -2.0
        margins[samples.masks[k]] = -1.0
        logits = torch.zeros(1, 20, 3)
        logits.scatter_(2, samples.labels[k][None, :, None], margins[None, :, None])
        histories.append(TrainingHistory.from_arrays(logits, samples.labels[k]))
    assert samples.flag(*histories).nonzero()[:, 0].tolist() == [wrong]
    assert samples.flag(*histories, percentile=0).nonzero()[:, 0].tolist() == [wrong]
    with pytest.raises(km.InputError, match=r"not labels\[0\]"):
        samples.flag(histories[1], histories[0])
    with pytest.raises(km.InputError, match="percentile"):
        samples.flag(*histories, percentile=101)
    assert "two trainings with 3 outputs" in str(samples)
    assert torch.equal(ThresholdSamples.load(samples.save(tmp_path / "samples")).masks, samples.masks)


@pytest.mark.parametrize(
    "arguments", [{"labels": [0]}, {"labels": [0, -1, 2]}, {"seed": -1}, {"n_classes": 1}, {"labels": ["a", "b"]}]
)
def test_what_does_not_fit_is_refused(arguments):
    with pytest.raises(km.InputError):
        threshold_samples(**({"labels": [0, 1, 1], "seed": 0} | arguments))
