"""experiments/text_memorization: small runs of the parts."""

import json
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from experiments.text_memorization import run as parts
from experiments.text_memorization.parts.ledger import Ledgers
from experiments.text_memorization.parts.recall import recall
from kernelmem import InputError, text
from tests.text.canary.tables import N_CHARACTERS, Memory, encode

SMALL = {
    "demonstration": {
        "n_documents": 30,
        "n_canaries": 10,
        "epochs": 1,
        "hidden": 4,
        "samples": 3,
        "max_nodes": 10,
        "fresh_sets": 1,
    },
    "dose": {"cells": ((2, 1), (4, 1)), "n_documents": 10, "n_canaries": 5},
    "ledger": {"n_rows": 8, "pairs_per_tier": 2, "tiers": (1, 2), "embedding": 2, "hidden": 2, "steps": 2, "batch": 4},
    "counterfactual": {"n_texts": 6, "n_canaries": 4, "models": 8, "epochs": 1, "width": 4, "halves": 1},
    "fine_tuning": {
        **{"rates": {"full": 1e-3, "lora r=2": 1e-2}, "n_old": 6, "old_pairs": 5, "n_documents": 6, "pairs": 4},
        **{"size": 8, "layers": 1, "epochs": 1, "fine_tune_epochs": 1},
    },
}
EXPECTED = {"demonstration": 7, "dose": 12, "ledger": 2, "counterfactual": 3, "fine_tuning": 2 * (5 + 6 + 3)}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("name", parts.PARTS)
def test_a_small_run_writes_its_files(name, tmp_path):
    if name == "fine_tuning":
        pytest.importorskip("peft")
    part = replace(parts.PARTS[name], setting=replace(parts.PARTS[name].setting, **SMALL[name]))
    once: dict = {}

    def measure(setting, seed):  # two seeds, of which one is measured
        return once.setdefault("records", list(part.measure(setting, seed)))

    parts.run_part(name, replace(part, measure=measure), parts.Options(seeds=2, out=tmp_path))
    results = json.loads((tmp_path / f"{name}.json").read_text())
    assert len(results["cells"]) == EXPECTED[name]
    assert len(pd.read_csv(tmp_path / f"{name}.csv")) == 2 * EXPECTED[name]
    printed = {column for cell in results["cells"] for column in cell}
    assert set(part.printed) <= printed | {"auroc_loss", "auroc_reference"}  # blank if a gate fails
    assert (tmp_path / "dose.svg").is_file() == (name == "dose")
    if name == "ledger":
        assert results["cells"][0]["residual"]["mean"] <= 1e-11


def test_recall_of_a_model_that_remembers_known_canaries_after_one_context():
    pairs = text.canaries(6, encode, tiers=(1, 2), seed=3)
    contexts = [torch.tensor(encode("one\n")), torch.tensor(encode("two\n"))]
    head = len(contexts[0]) + len(pairs.heads[0][0])
    known = [(pair, int(pairs.inserted[pair])) for pair in (pairs.repetitions == 2).nonzero()[:, 0].tolist()]
    model = Memory([(torch.cat([contexts[0], pairs.ids(*canary)]), head) for canary in known], strength=30.0)
    found = recall(text.causal_lm(model), pairs, contexts)
    remembered, forgotten, twins = (found.record(copies) for copies in (2, 1, 0))
    uniform = 6 * math.log2(N_CHARACTERS)
    assert remembered["greedy"] == remembered["sampled"] == 0.5
    assert remembered["greedy_any"] == remembered["canaries"] == 3
    assert remembered["secret_bits"] == pytest.approx(uniform / 2, abs=1e-9)
    assert remembered["auroc"] == 1
    assert forgotten["greedy"] == twins["greedy"] == twins["greedy_any"] == 0
    assert [forgotten["secret_bits"], twins["secret_bits"]] == pytest.approx([uniform, uniform], abs=1e-9)


def test_one_seed_has_no_error():
    with pytest.raises(InputError, match="1 seeds"):
        parts.run(parts.Options(seeds=1))


def test_canaries_fit_into_the_rows_of_the_ledger():
    setting = Ledgers()
    assert setting.n_rows > setting.pairs_per_tier * sum(setting.tiers)
