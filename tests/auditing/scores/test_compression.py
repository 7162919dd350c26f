"""Bits of the training labels in an audit: those of km.account, a control, and reasons where there are none."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import kernelmem as km
from kernelmem.auditing import conclusions
from kernelmem.auditing.audit import SEEDS
from kernelmem.auditing.data_checks import read_rows, with_outputs
from kernelmem.auditing.scores import agreements, compression, flip_detection, label_bits
from kernelmem.core.checks import seed_sequence


def inputs_of(trained):
    model, train, test, _ = trained
    rows, data, labels = read_rows(train, test, None, class_names=None, name="data", image_shape=None)
    return with_outputs(model, rows, data, labels, forward=None, n_classes=None)


def test_bits_are_those_of_an_account(trained, result):
    model, train, _, flipped = trained
    document, table = result.document, result.to_frame()
    bits = document.compression
    assert bits.status == "estimated"
    seed = seed_sequence(0, SEEDS)["compression"]
    account = km.account(model, train, seed=seed)
    for name in ("uniform", "online", "left_out", "network", "memorized", "noise", "noise_rate", "noise_rate_error"):
        expected = getattr(account, name)
        assert getattr(bits, name) == (None if expected is None else pytest.approx(expected, rel=1e-6))
    assert bits.reference == account.reference
    assert bits.sentence == account.sentence
    assert abs(dict(bits.nulls)["untrained network"]) <= 2
    np.testing.assert_allclose(table.memorized_bits, account.memorized_rows, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(table.left_out_bits, account.left_out_rows, rtol=1e-5, atol=1e-6)
    first = document.rows[0]
    assert first.memorized_bits == table.memorized_bits[first.index]
    assert table.memorized_bits[np.asarray(flipped)].mean() > 5 * table.memorized_bits[~np.asarray(flipped)].mean()
    assert dict(document.flips.other_aurocs)["memorized bits"] > 0.9
    assert str(bits.sentence)[:20] in str(result)


@pytest.mark.parametrize("change", ["memory", "not estimable", "control", "no control"])
def test_no_number_without_a_reference_and_a_control(trained, result, monkeypatch, change):
    inputs, memory = inputs_of(trained), "1GiB"
    real = compression.account
    if change == "memory":
        memory = 150_000
    elif change == "not estimable":  # labels without a relation to the rows
        y = torch.randint(10, (150,), generator=torch.Generator().manual_seed(0))
        inputs = replace(inputs, data=replace(inputs.data, y_train=y))
    else:
        nulls = {"untrained network": 12.0} if change == "control" else {}
        monkeypatch.setattr(compression, "account", lambda *a, **k: replace(real(*a, **k), nulls=nulls))
    bits = label_bits(trained[0], inputs, seed=0, memory=memory)
    status, words = {
        "memory": ("not run", "Not run: Got 150 rows"),
        "not estimable": ("not estimable", "Not estimable: the reference"),
        "control": ("control failed", "untrained network: 12 bits"),
        "no control": ("control failed", "not computed"),
    }[change]
    assert bits.account.status == status
    assert words in bits.account.sentence
    assert bits.account.memorized is bits.account.uniform is bits.account.online is bits.account.noise is None
    document = result.document
    untested = conclusions.not_tested(document.how_much, document.leak, bits.account, document.context)
    assert any("Bits of the labels" in line for line in untested) == (change == "memory")
    table = bits.added_to(result.rows)
    assert np.isnan(table.memorized_bits).all()
    assert np.isnan(table.left_out_bits).all()
    flips = flip_detection(table, torch.arange(150) < 20, 0)
    assert "memorized bits" not in dict(flips.other_aurocs)
    assert agreements(table, None, 0) == ()
