"""Results of label noise: save and load to the bit, text of one screen, tables."""

import numpy as np
import pytest
import torch

from kernelmem.core.errors import FileCorruptError
from kernelmem.label_noise.corrupt import CorruptedLabels, corrupt_labels
from kernelmem.label_noise.detection import Detection, detect

Y = torch.arange(60) % 3


def test_corrupted_labels_are_saved_to_the_bit(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 2))
    for options in ({}, {"kind": "instance", "x": x}):
        noisy = corrupt_labels(Y, 0.2, seed=0, **options)
        loaded = CorruptedLabels.load(noisy.save(tmp_path / "noisy.safetensors"))
        for name in ("y", "flipped", "matrix"):
            assert torch.equal(getattr(loaded, name), getattr(noisy, name))
            assert getattr(loaded, name).dtype == getattr(noisy, name).dtype


def test_a_detection_is_saved_to_the_bit(tmp_path):
    noisy = corrupt_labels(Y, 0.2, seed=0)
    detection = detect(torch.arange(60) % 7, noisy.flipped, seed=0)
    path = detection.save(tmp_path / "detection.safetensors")
    loaded = Detection.load(path)
    assert str(loaded) == str(detection)
    assert (loaded.auroc, loaded.permuted_sd) == (detection.auroc, detection.permuted_sd)
    assert torch.equal(loaded.precision, detection.precision)
    with pytest.raises(FileCorruptError):
        CorruptedLabels.load(path)


def test_the_text_says_what_matters():
    noisy = corrupt_labels(Y, 0.2, seed=0)
    assert repr(noisy) == "12 of 60 labels flipped (20.00%), 3 classes, transition matrix (3, 3)"
    text = repr(detect(noisy.flipped, noisy.flipped, seed=0))
    assert text.startswith("AUROC 1.0000 (95 % interval 0.8958 to 1.0000) for 12 flips among 60 rows")
    assert "precision = recall = 1.0000 among the 12 most suspicious rows" in text


def test_tables():
    noisy = corrupt_labels(Y, 0.2, seed=0)
    frame = noisy.to_frame()
    assert list(frame.columns) == ["y", "flipped"]
    assert frame["flipped"].sum() == 12
    detection = detect(noisy.flipped, noisy.flipped, seed=0)
    assert list(detection.to_frame().columns) == ["ranks", "precision", "recall"]
    assert "<table" in detection._repr_html_()
