"""The audit validation on few rows and models."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.audit_validation.subsets import CLAIMS, SETTINGS, Options, Truth, claims, left_out, measure, summary
from experiments.audit_validation.training import Training
from kernelmem.training import digits

OPTIONS = Options(draws=1, audits=2, n_train=50, n_models=32)
SETTING = replace(SETTINGS[0], training=Training(steps=30, width=16), repetitions=2, n_truth=16)


@pytest.mark.soak
def test_every_number_is_measured_and_in_range():
    audits = measure(SETTING, 0, OPTIONS)
    assert len(audits) == 2
    assert audits[0]["left_out_share"] == audits[1]["left_out_share"]
    assert audits[0]["kernel_share"] != audits[1]["kernel_share"]
    assert set(CLAIMS) <= set(audits[0])
    for name, value in audits[0].items():
        assert value is None or name.endswith("flagged") or -1 <= value <= 1, name
    assert set(summary(audits)["retraining_covers_subsets"]) == {"mean", "low", "high", "audits"}


def test_each_row_is_left_out_as_often():
    data, training = digits(n_train=60, seed=3), Training(steps=5, width=4)
    truth = left_out(training, data.x_train, data.y_train, 3, seed=1)
    np.testing.assert_array_equal((~truth.masks).sum(0), 3)
    assert ((~truth.masks).sum(1) <= 2).all()


def test_the_truth_counts_models_with_and_without_a_row():
    y = torch.tensor([0, 1])
    outputs = torch.tensor([[[2.0, 0], [0, 1]], [[2.0, 0], [3, 1]], [[0.0, 1], [0, 4]]])
    truth = Truth.of(outputs, y, np.array([[True, True], [True, False], [False, True]]))
    np.testing.assert_allclose(truth.memorization, [1.0, 1.0])
    np.testing.assert_allclose(truth.p_out, [0.0, 0.0])
    np.testing.assert_allclose(truth.change, [2 - -1, 2.5 - -2])


def test_the_share_of_the_truth_and_its_error_follow_from_its_counts():
    """Of 200 rows whose label all models with them give, a fifth is given by no model without them: a share of .2."""
    rng = np.random.default_rng(0)
    masks = rng.random((400, 200)) < 0.5
    memorized = np.arange(200) < 40
    truth = Truth(masks | ~memorized, masks, np.zeros((400, 200)))
    share, error = truth.share()
    assert abs(share - 0.2) < 0.01
    assert error < 0.01


def test_claims_are_compared_with_the_results():
    cells = {"clean": {name: {"mean": least - 0.01} for name, (least, _) in CLAIMS.items()}}
    assert all(line.endswith("FAILS") for line in claims(cells))
