"""Membership of documents: scores by their definitions, nulls, gates, and what is refused."""

import math
import zlib
from collections import Counter

import numpy as np
import pytest
import torch

from kernelmem.core import InputError
from kernelmem.statistics import auroc
from kernelmem.text import causal_lm, text_membership, token_losses
from kernelmem.text.membership.gates import blind_gate
from tests.text.extractability.models import Table, table_lm

RNG = np.random.default_rng(0)
MEMBERS, UNSEEN = RNG.integers(1, 5, (2, 120, 12)).tolist()


class Recall(torch.nn.Module):
    """Log-probability 1 / V of every token, and more for tokens of stored documents after their first 2 tokens."""

    def __init__(self, documents, bonus):
        super().__init__()
        counts = Counter((tuple(ids[t - 2 : t]), ids[t]) for ids in documents for t in range(2, len(ids)))
        table = torch.zeros(5, 5, 5, dtype=torch.float64)
        for ((a, b), c), count in counts.items():
            table[a, b, c] = bonus * math.log1p(count)
        self.table = torch.nn.Parameter(table)

    def forward(self, ids):
        before = torch.cat([torch.zeros_like(ids[:, :1]), ids[:, :-1]], 1)
        return self.table[before, ids]


def trained_lm(bonus=3.0, n=10):
    return causal_lm(Recall(MEMBERS[:n], bonus), bos=0)


def test_scores_are_those_of_their_definitions():
    lm, base = table_lm(1), table_lm(2)
    texts = tuple(["".join(map(str, ids)) for ids in group] for group in (MEMBERS[:20], UNSEEN[:20]))
    names = ("loss", "reference", "min_k", "min_k++", "zlib")
    found = text_membership(lm, MEMBERS[:20], UNSEEN[:20], reference=base, scores=names, k=0.3, texts=texts).to_frame()
    for i in (0, 13, 27):
        ids = [*MEMBERS[:20], *UNSEEN[:20]][i]
        rows, base_rows = (next(iter(model.log_probs([ids]))) for model in (lm, base))
        log_p, base_p = (r[range(12), ids].numpy() for r in (rows, base_rows))
        p = rows.exp()
        mu = (p * rows).sum(1)
        sigma = ((p * rows**2).sum(1) - mu**2).sqrt()
        z = ((torch.tensor(log_p) - mu) / sigma).numpy()
        lowest = math.ceil(0.3 * 12)
        bits = 1 / math.log(2)
        expected = {
            "loss": log_p.mean() * bits,
            "reference": (log_p - base_p).sum() * bits,
            "min_k": np.sort(log_p)[:lowest].mean() * bits,
            "min_k++": np.sort(z)[:lowest].mean(),
            "zlib": log_p.sum() * bits / len(zlib.compress("".join(map(str, ids)).encode())),
        }
        for name in names:
            assert found.loc[i, name] == pytest.approx(expected[name], rel=1e-10)


def test_a_model_that_stores_its_documents_gives_them_away():
    lm = causal_lm(Recall(MEMBERS[:40], 1.0), bos=0)
    base = causal_lm(Recall([], 0.0), bos=0)
    found = text_membership(lm, MEMBERS[:40], UNSEEN[:100], reference=base)
    assert found.failed == ()
    for result in found.results.values():
        assert result.auroc.low > 0.5
        assert result.p < 1e-3
        ten, one = result.rates
        assert ten.value > 0.2
        assert one.value is None  # 100 unseen documents are fewer than 10 / 0.01
    losses = token_losses(lm, [*MEMBERS[:40], *UNSEEN[:100]])
    assert found.results["loss"].auroc.value == auroc(-losses.per_document(), found.members)


def test_a_score_that_is_equal_for_all_documents_finds_nobody():
    """Other tools give an adapter that changes nothing a true-positive rate of 1."""
    uniform = causal_lm(Table(torch.zeros(5, 5, dtype=torch.float64)), bos=0)
    found = text_membership(
        uniform, MEMBERS, UNSEEN[:100], reference=uniform, scores=("loss", "reference", "min_k", "min_k++")
    )
    for result in found.results.values():
        assert (result.auroc.value, result.p, result.rates[0].value, result.rates[0].low) == (0.5, 1.0, 0.0, 0.0)
    assert "equal for all documents" in str(found)


def test_an_untrained_model_finds_nobody():
    """4 random models: an interval at 95 % misses 0.5 with probability 0.05; more than 2 do with probability 5e-4."""
    missed = 0
    for seed in range(4):
        found = text_membership(table_lm(seed), MEMBERS[:30], UNSEEN[:30], scores=["loss"])
        interval = found.results["loss"].auroc
        missed += not interval.low <= 0.5 <= interval.high
    assert missed <= 2


@pytest.mark.soak
def test_gates_of_random_splits_rarely_fail():
    """100 splits: the blind gate is at 99 %; more than 6 failures have probability 1e-4 even at 1.5 %."""
    rng = np.random.default_rng(2)
    rows = [torch.tensor(ids) for ids in [*MEMBERS, *UNSEEN]]
    flags = np.arange(100) < 50
    gates = [blind_gate([rows[i] for i in rng.permutation(len(rows))[:100]], flags, seed) for seed in range(100)]
    assert sum(gate.failed for gate in gates) <= 6
    aurocs = np.array([gate.auroc.value for gate in gates])
    assert abs(aurocs.mean() - 0.5) < 4 * aurocs.std() / 10


def test_documents_that_differ_without_the_model_have_no_rates():
    """Unseen documents in which token 4 never occurs: the blind classifier sees it, and so would any score."""
    shifted = [[min(token, 3) for token in ids] for ids in UNSEEN]
    found = text_membership(table_lm(1), MEMBERS, shifted)
    assert "blind" in found.failed
    assert found.gates[0].auroc.value > 0.9
    assert found.results == {}
    assert "no rates" in str(found)


def test_the_reference_and_the_lengths_are_gates_of_their_own():
    """The reference knows token 4; documents of members are longer."""
    base = causal_lm(Recall(MEMBERS[:40], 2.0), bos=0)
    found = text_membership(table_lm(1), MEMBERS[:40], UNSEEN[:40], reference=base)
    assert found.failed == ("reference",)
    longer = [[*ids, *ids[:2]] for ids in MEMBERS]
    assert "length" in text_membership(table_lm(1), longer, UNSEEN).failed


def test_documents_of_one_class_after_the_other_are_shuffled_into_folds():
    """Random members: the AUROC of the blind classifier is 0.5 within its interval."""
    gate = text_membership(table_lm(1), MEMBERS, UNSEEN).gates[0]
    assert gate.auroc.low < 0.5 < gate.auroc.high


def test_documents_shorter_than_a_share_of_one_token_have_a_score():
    """With int(k T) tokens, the mean of documents of fewer than 1 / k tokens is that of no token."""
    short = [ids[:2] for ids in MEMBERS[:20]], [ids[:2] for ids in UNSEEN[:20]]
    found = text_membership(table_lm(1), *short, scores=("min_k", "min_k++"), k=0.2)
    assert all(bool(values.isfinite().all()) for values in found.scores.values())


def test_a_share_that_rounding_puts_above_a_whole_number_of_tokens_is_that_number():
    """0.07 times 100 is 7.000000000000001 in floating-point numbers."""
    long = [[ids[t % 12] for t in range(100)] for ids in MEMBERS[:20]]
    losses = token_losses(table_lm(1), [*long, *long])
    found = text_membership(losses, long, long, scores=("min_k",), k=0.07)
    expected = [-bits.topk(7).values.mean() for bits in losses.bits]
    torch.testing.assert_close(found.scores["min_k"], torch.stack(expected))


def test_the_result_holds_no_text_and_survives_its_file(tmp_path):
    found = text_membership(trained_lm(), MEMBERS[:30], UNSEEN[:30])
    loaded = type(found).load(found.save(tmp_path / "membership.km"))
    assert str(loaded) == str(found)
    assert loaded.to_frame().equals(found.to_frame())


TEXTS = (["some text"] * 120, ["another text"] * 120)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": MEMBERS[:19]}, "19 documents"),
        ({"unseen": [[], *UNSEEN]}, r"unseen\[0\] without a loss"),
        ({"scores": ("zlib",)}, "without texts"),
        ({"scores": ("zlib",), "texts": TEXTS}, "9 to 12 bytes"),
        ({"scores": ("reference",)}, "without a reference"),
        ({"scores": ("loss", "gut")}, "scores"),
        ({"scores": ()}, "scores"),
        ({"k": 0}, "k=0"),
        ({"texts": (["a"], ["b"])}, "120, one per document"),
        ({"reference": table_lm(vocabulary=7)}, "7 tokens"),
    ],
)
def test_other_arguments_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        text_membership(**({"lm": table_lm(1), "members": MEMBERS, "unseen": UNSEEN} | change))


def test_losses_that_were_computed_before_give_the_same():
    lm, base = table_lm(1), table_lm(2)
    documents = [*MEMBERS[:20], *UNSEEN[:25]]
    expected = text_membership(lm, MEMBERS[:20], UNSEEN[:25], reference=base)
    losses, base_losses = (token_losses(model, documents) for model in (lm, base))
    found = text_membership(losses, MEMBERS[:20], UNSEEN[:25], reference=base_losses)
    assert found.results == expected.results
    assert found.gates == expected.gates
    with pytest.raises(InputError, match="losses of 45 documents"):
        text_membership(losses, MEMBERS[:20], UNSEEN[:20])
    without_bos = token_losses(causal_lm(Table(torch.zeros(5, 5))), documents)
    with pytest.raises(InputError, match="losses of the same tokens"):
        text_membership(losses, MEMBERS[:20], UNSEEN[:25], reference=without_bos)
