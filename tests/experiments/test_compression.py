"""experiments/compression: codes of weights, entropies of noise and generated classes; small runs of the parts."""

import itertools
import json
import math
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import kernelmem as km
from experiments.compression import run as parts
from experiments.compression.large import Large, measure
from experiments.compression.noise_kinds import entropy_of_noise
from experiments.compression.online import Online, Orders, online, orders
from experiments.compression.other_data import GaussianClasses
from experiments.compression.quantization import code_length, matched_difference, quantized
from experiments.compression.width import through_the_peak

SMALL = {
    "account": {
        "rates": (0.0, 0.2),
        "null_rates": (0.2,),
        "references": ("infinite_ntk",),
        "n_train": 60,
        "width": (16,),
        "steps": 60,
    },
    "width": {"widths": (2, 16), "n_train": 60, "steps": 60},
    "quantization": {"grid": (0.125, 2.0), "n_train": 60, "width": (16,), "steps": 60},
    "noise_kinds": {"kinds": ("pair", "instance"), "rates": (0.2,), "n_train": 80, "width": (16,), "steps": 60},
    "convolutional": {"rates": (0.2,), "n_train": 60, "channels": 2, "steps": 20},
    "tables": {"names": ("wine",), "rates": (0.2,), "width": (16,), "steps": 60},
    "generated": {"distances": (4.0,), "rates": (0.0, 0.2), "n": 80, "width": (16,), "steps": 60},
}


def test_lengths_of_integers_are_those_of_a_prefix_code():
    """The lengths of all words of two integers in -k..k, without the one that pays k, sum to at most 1."""
    words = itertools.product(range(-3, 4), repeat=2)
    assert sum(2.0 ** -code_length(np.array(word)) for word in words) <= 1 + 1e-12
    integers = np.array([0, 1, 0, 0, -1, 2])
    counts, bits = np.zeros(5), 0.0
    for value in integers:
        bits -= math.log2((counts[value + 2] + 0.5) / (counts.sum() + 2.5))
        counts[value + 2] += 1
    assert code_length(integers) == pytest.approx(bits + 3, abs=1e-9)  # k = 2 costs 3 bits


@torch.no_grad()
def test_networks_are_rounded_to_a_grid():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    before = [parameter.clone() for parameter in model.parameters()]
    coarse, bits = quantized(model, 0.5)
    for index in (0, 2):
        step = 0.5 * float(model[index].weight.std())
        for name in ("weight", "bias"):
            exact, rounded = getattr(model[index], name), getattr(coarse[index], name)
            assert float((exact - rounded).abs().max()) <= step / 2 * (1 + 1e-5)
            assert torch.allclose(rounded / step, (rounded / step).round(), atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert quantized(model, 0.1)[1] > bits > quantized(model, 4.0)[1]


def test_rows_are_compared_at_equal_margin():
    generator = torch.Generator().manual_seed(0)
    margin = torch.rand(4000, generator=generator, dtype=torch.float64)
    flipped = torch.rand(4000, generator=generator) < 1.2 - margin  # flipped rows have smaller margins
    kept = (margin > 0.5).double()  # and only the margin decides
    assert float(kept[~flipped].mean() - kept[flipped].mean()) > 0.1
    assert abs(matched_difference(kept, flipped, margin)) < 0.05
    assert matched_difference((~flipped).double(), flipped, margin) == pytest.approx(1.0)
    assert math.isnan(matched_difference(kept, flipped, margin + 10 * flipped))


@pytest.mark.parametrize(("kind", "per_label"), [("symmetric", 0.2 * math.log2(9)), ("pair", 0.0)])
def test_entropy_of_noise(kind, per_label):
    y = torch.arange(50) % 10
    h = -0.2 * math.log2(0.2) - 0.8 * math.log2(0.8)
    assert entropy_of_noise(km.corrupt_labels(y, 0.2, kind, seed=0), y) == pytest.approx(50 * (h + per_label))


def test_posteriors_of_gaussian_classes_are_calibrated():
    """Shares of labels are those of the posteriors; two classes have the Bayes error Φ(−distance / 2)."""
    x, y, posterior = GaussianClasses(2.0, n_classes=2).draw(20_000, np.random.default_rng(0))
    assert x.shape == (20_000, 10)
    bayes_error = 0.5 * math.erfc(1 / math.sqrt(2))
    assert float(1 - posterior.amax(1).mean()) == pytest.approx(bayes_error, abs=4 * 0.5 / math.sqrt(20_000))
    for low in (0.1, 0.4, 0.8):
        chosen = (posterior[:, 1] > low) & (posterior[:, 1] < low + 0.1)
        share = (y[chosen] == 1).double()
        assert float(share.mean() - posterior[chosen, 1].mean()) == pytest.approx(0, abs=4 * 0.5 / len(share) ** 0.5)


def test_the_width_at_which_bits_arrive():
    records = [
        {
            "rate": rate,
            "seed": seed,
            "width": width,
            "memorized": memorized if rate else 10,
            "train_error": error,
            "test_error": loss / 10,
            "test_loss": loss + 0.01 * seed,
        }
        for rate in (0.2, 0.0)
        for seed in range(4)
        for width, memorized, error, loss in ((2, 0, 0.5, 1), (4, 60, 0.2, 2), (8, 99, 0.0, 4), (16, 100, 0.0, 1))
    ]
    result = through_the_peak(records, 0.2)
    assert result["memorized_arrives_at"] == result["test_loss"]["at"] == 8
    assert result["memorized_above_control"]["mean"] == 90
    assert 4 < result["threshold"] < 8
    assert result["test_loss"]["rise"] == pytest.approx(3)


@pytest.mark.parametrize("name", SMALL)
def test_a_small_run_writes_its_files(name, tmp_path, capsys):
    part = parts.PARTS[name]
    options = parts.Options(seeds=4 if name == "width" else 2, out=tmp_path)
    parts.run_part(name, replace(part, setting=replace(part.setting, **SMALL[name])), options)
    results = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert all(column in cell for cell in results["cells"] for column in (*part.by, *part.printed))
    assert part.printed[0] in capsys.readouterr().out
    records = pd.read_csv(tmp_path / f"{name}.csv")
    assert records.untrained.between(-1 - 1e-6, 2).all()
    assert np.allclose(records.left_out - records.network, records.memorized)
    figures = [path.name for path in tmp_path.glob("*.svg")]
    assert figures == ([f"{name}.svg"] if name in ("width", "quantization") else [])


def test_too_few_seeds_are_refused(tmp_path):
    with pytest.raises(km.InputError, match="at least 4"):
        parts.run(parts.Options(parts=("width",), seeds=3, out=tmp_path))


@pytest.mark.parametrize("what", ["online_code", "account"])
def test_time_and_memory_are_measured(what):
    record = measure(replace(Large(), steps=20, width=(8,)), 120, 0, what)
    assert record["seconds"] > 0
    assert record["memory_mb"] >= 0
    assert record["bayes_bits"] < (record["bits"] if what == "online_code" else record["left_out"]) < record["uniform"]


def test_online_codes_of_a_small_run_decode():
    setting = Online(data=("digits",), rates=(0.0, 0.2), n_train=60, sources=("kernel", "logistic"))
    records = list(online(setting, 0))
    assert [record["source"] for record in records] == ["kernel", "logistic"] * 2
    assert all(record["decodes"] and record["ideal"] < record["bits"] for record in records)
    assert records[0]["ideal"] < records[2]["ideal"]
    small = Orders(data=("digits",), rates=(0.0,), n_train=60, n_orders=2)
    (record,) = orders(small, 0)
    assert record["standard_deviation"] > 0


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the memory can only be reset on Linux")
def test_an_account_keeps_to_its_memory():
    """40 n² bytes are documented, for kernels and factorizations; 10⁸ more for everything that does not grow with n²."""
    record = measure(replace(Large(), steps=20), 3000, 0, "account")
    assert record["memory_mb"] * 1e6 <= 40 * 3000**2 + 1e8
