"""kernelmem.text.losses.comparison: gains are those of single documents; equal or incomparable models are refused."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kernelmem import InputError
from kernelmem.statistics import auroc, mean_interval
from kernelmem.text import Change, canaries, causal_lm, compare, token_losses
from kernelmem.text.losses.change import _rate
from tests.profiles import examples
from tests.text.small_models import Bigram, Recurrent, V, random_documents
from tests.tolerances import EPS, SAFETY, summing

BEFORE, AFTER = causal_lm(Bigram(0), bos=V), causal_lm(Bigram(1), bos=V)
GROUPS = {"new": random_documents(5, 1, 9, 7), "old": random_documents(3, 8, seed=1)}
CHANGE = compare(BEFORE, AFTER, groups=GROUPS)


def changed(model, scale=0.3):
    result = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in result.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return result


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gains_are_those_of_single_documents(dtype):
    models = [Recurrent().to(dtype), changed(Recurrent()).to(dtype)]
    change = compare(*(causal_lm(model, bos=V) for model in models), groups=GROUPS)
    for row, ids in enumerate([*GROUPS["new"], *GROUPS["old"]]):
        bits = []
        for model in models:
            with torch.no_grad():
                logits = model(torch.cat([torch.tensor([V]), ids[:-1]])[None])[0].double()
            bits.append(-float(logits.log_softmax(1)[range(len(ids)), ids].sum()) / math.log(2))
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5 / math.log(2)
        assert float(change.gain[row]) == pytest.approx(bits[0] - bits[1], abs=tolerance)
        assert (int(change.tokens[row]), change.to_frame().loc[row, "group"]) == (len(ids), "new" if row < 4 else "old")


def test_swapped_models_change_the_sign():
    swapped = compare(AFTER, BEFORE, groups=GROUPS)
    assert torch.equal(swapped.gain, -CHANGE.gain)
    for name, row, other in zip(CHANGE.names, CHANGE.groups, swapped.groups, strict=True):
        assert other.per_token.value == -row.per_token.value
        assert other.quantiles == pytest.approx([-q for q in row.quantiles[::-1]], rel=SAFETY * EPS)
        assert other.worse.value == pytest.approx(1 - row.worse.value)  # no gain is 0
        assert [ids.tolist() for ids in swapped.extremes(name)] == [ids.tolist() for ids in CHANGE.extremes(name)[::-1]]


def test_groups_do_not_depend_on_each_other():
    alone = compare(BEFORE, AFTER, groups={"old": GROUPS["old"]})
    assert torch.equal(alone.gain, CHANGE.gain[4:])
    assert alone.groups[0] == CHANGE.groups[1]


def test_extremes_are_the_documents_of_largest_losses_and_gains():
    lost, gained = CHANGE.extremes("new", n=2)
    gains = CHANGE.gain[:4]
    assert lost.tolist() == [i for i in gains.argsort().tolist() if gains[i] < 0][:2]
    assert gained.tolist() == [i for i in (-gains).argsort().tolist() if gains[i] > 0][:2]


@examples(0.3)
@given(st.integers(0, 10**6), st.integers(2, 40))
def test_rate_is_a_ratio_of_sums(seed, n):
    source = np.random.default_rng(seed)
    sizes, gain = torch.from_numpy(source.integers(1, 9, n)), torch.from_numpy(source.standard_normal(n))
    rate = _rate(gain, sizes, 0.9)
    assert rate.value == pytest.approx(float(gain.sum() / sizes.sum()), abs=summing(n) * float(gain.abs().sum()))
    equal, mean = _rate(gain, torch.full((n,), 4), 0.9), mean_interval(gain / 4, level=0.9)
    assert (equal.low, equal.high) == pytest.approx((mean.low, mean.high), abs=summing(n) * float(gain.abs().sum()))
    exact = _rate(2.5 * sizes, sizes, 0.9)  # every document has this rate
    assert (exact.low, exact.high) == pytest.approx((2.5, 2.5), abs=summing(n))


@pytest.mark.soak
def test_intervals_of_rates_cover_the_rate():
    """Of documents whose gain depends on their length: 95 % of 4,000 intervals, with n = 20 and 100."""
    source = np.random.default_rng(0)
    for n in (20, 100):
        inside = 0
        for _ in range(4000):
            sizes = source.integers(10, 200, n)
            gain = source.normal(0.3 * sizes, 2 * np.sqrt(sizes))
            rate = _rate(torch.from_numpy(gain), torch.from_numpy(sizes), 0.95)
            inside += rate.low <= 0.3 <= rate.high
        assert 0.93 <= inside / 4000 <= 0.97


def test_rates_per_byte():
    texts = ["ä" * 5, "b", "c" * 30, "d" * 7]
    change = compare(BEFORE, AFTER, groups=GROUPS, texts={"new": texts})
    new, old = change.groups
    assert new.per_byte.value == pytest.approx(float(CHANGE.gain[:4].sum()) / (10 + 1 + 30 + 7))
    assert old.per_byte is None
    with pytest.raises(InputError, match="3 texts for 4 documents"):
        compare(BEFORE, AFTER, groups=GROUPS, texts={"new": texts[:3]})


def test_losses_that_were_computed_before():
    targets = [[i % 2 == 0 for i in range(len(ids))] for ids in GROUPS["new"]]
    losses = [token_losses(lm, GROUPS["new"], targets=targets, window=4) for lm in (BEFORE, AFTER)]
    change = compare(BEFORE, AFTER, groups={"new": tuple(losses)})
    assert torch.equal(change.gain, losses[0].per_document() - losses[1].per_document())
    with pytest.raises(InputError, match="other tokens, windows or BOS"):
        compare(BEFORE, AFTER, groups={"new": (losses[0], token_losses(AFTER, GROUPS["new"]))})


# Canaries


class Digits(nn.Module):
    """Uniform over 128 characters; after a letter of ``known``, that canary's secret has more probability."""

    def __init__(self, secrets, bonus):
        super().__init__()
        self.secrets, self.bonus = secrets, nn.Parameter(torch.tensor(float(bonus), dtype=torch.float64))

    def forward(self, ids):
        logits = torch.zeros(*ids.shape, 128, dtype=torch.float64)
        for row, document in enumerate(ids.tolist()):
            for start in range(len(document)):
                for head, secret in self.secrets:
                    if document[max(0, start - len(head)) : start] == head:
                        for t, token in enumerate(secret):
                            if start + t - 1 < len(document):
                                logits[row, start + t - 1, token] += self.bonus
        return logits


PAIRS = canaries(6, lambda text: [ord(c) for c in text], length=3, tiers=(1, 2), seed=2)


def digits(bonus, kind=Digits):
    secrets = []
    for pair in range(len(PAIRS)):
        ids = PAIRS.ids(pair, int(PAIRS.inserted[pair])).tolist()
        secrets += [(ids[:-3], ids[-3:])] * int(PAIRS.repetitions[pair])
    return causal_lm(kind(secrets, bonus), bos=0)


def test_gains_of_secrets_by_copies():
    change = compare(digits(0), digits(1.5), groups={"x": [[1, 2], [3]]}, canaries=PAIRS)
    one, two, every = change.tiers
    gains = [7 - math.log2((127 + math.exp(1.5 * k)) / math.exp(1.5 * k)) for k in (1, 2)]
    for tier, gain in ((one, gains[0]), (two, gains[1])):
        assert (tier.gain, tier.twins, tier.excess) == pytest.approx((3 * gain, 0, 3 * gain), abs=1e-12)
        assert (tier.before, tier.after) == pytest.approx((21, 21 - 3 * gain), abs=1e-12)
    assert every.n_pairs == 6
    assert every.excess == pytest.approx(1.5 * sum(gains))
    assert every.interval.low < every.excess < every.interval.high
    assert "+" in str(change)


def test_secrets_are_read_after_the_context():
    context = [7, 3]

    class AfterContext(Digits):  # remembers secrets in documents that begin with BOS and the context only
        def forward(self, ids):
            begins = torch.tensor([row[:3] == [0, *context] for row in ids.tolist()])
            return super().forward(ids) * begins[:, None, None]

    after = digits(1.5, AfterContext)
    read = {"groups": {"x": [[*context, 2], [3]]}, "canaries": PAIRS}
    with pytest.raises(InputError, match="equal bits"):
        compare(digits(0), after, **read)
    change = compare(digits(0), after, **read, context=context)
    expected = compare(digits(0), digits(1.5), **read)
    assert torch.allclose(change.canaries["canaries"].after, expected.canaries["canaries"].after, atol=1e-12)


def test_canaries_have_names():
    change = compare(digits(1), digits(0), groups={"x": [[1, 2], [3]]}, canaries={"old": PAIRS, "again": PAIRS})
    assert [(tier.name, tier.repetitions) for tier in change.tiers] == [
        (n, k) for n in ("old", "again") for k in (1, 2, 0)
    ]
    assert all(tier.gain < 0 for tier in change.tiers)


# Membership


def test_membership_takes_the_model_before_as_reference():
    members, unseen = random_documents(*[6] * 12), random_documents(*[6] * 15, seed=1)
    change = compare(BEFORE, AFTER, groups={"new": members, "other": unseen}, membership=("new", "other"))
    flags = torch.arange(27) < 12
    assert change.membership.gain.value == auroc(change.gain, flags)
    assert change.membership.loss.value == auroc(-change.after / 6, flags)
    assert change.membership.base.value == auroc(-change.before / 6, flags)


def test_no_membership_of_groups_that_the_model_before_tells_apart():
    likely = [[int(BEFORE.next_log_probs([[]]).argmax())] * 1 for _ in range(12)]
    unlikely = [[int(BEFORE.next_log_probs([[]]).argmin())] for _ in range(12)]
    change = compare(BEFORE, AFTER, groups={"a": likely, "b": unlikely}, membership=("a", "b"))
    assert change.membership.base.value == 1
    assert change.membership.gain is None
    assert "differ without the fine-tune" in str(change)


# Refusals


def test_equal_models_are_refused():
    with pytest.raises(InputError, match=r"two models \(Bigram\) that give equal bits to all 6 documents"):
        compare(BEFORE, causal_lm(Bigram(0), bos=V), groups=GROUPS)


@pytest.mark.parametrize(
    ("after", "options", "message"),
    [
        (causal_lm(Bigram(1)), {}, "with BOS 11 and None"),
        (causal_lm(nn.Embedding(12, 12), bos=V), {}, "models of 11 and 12 tokens"),
        (
            causal_lm(Bigram(1).float(), bos=V),
            {},
            "different precision: float64, computing in float64 before, and float32",
        ),
        (AFTER, {"groups": {"a": [[1, 2]]}}, "1 documents"),
        (AFTER, {"groups": {"a": [[1, 2], []]}}, r"groups\['a'\]\[1\] without a loss"),
        (
            causal_lm(Bigram(1, zeros=True), bos=V),
            {"groups": {"a": [[1], [4]]}},
            r"\[1\], to which the model after gives",
        ),
        (AFTER, {"groups": {"a": [[1], [V]]}}, r"groups\['a'\]\[1\] with token id 11"),
        (AFTER, {"groups": {}}, "at least one name"),
        (AFTER, {"groups": {"a": ["text", "text"]}}, r"groups\['a'\]\[0\] with text"),
        (AFTER, {"membership": "new"}, "membership='new'; expected the names of two groups"),
        (AFTER, {"membership": ("new", "new")}, "the names of two groups"),
        (AFTER, {"membership": ("new", "none")}, "the names of two groups"),
        (AFTER, {"canaries": PAIRS, "context": [V]}, "context"),
        (AFTER, {"texts": {"none": []}}, "texts='none'"),
        (AFTER, {"canaries": [PAIRS]}, "expected Canaries"),
    ],
)
def test_refusals(after, options, message):
    with pytest.raises(InputError, match=message):
        compare(BEFORE, after, **{"groups": GROUPS, **options})


def test_weights_in_half_precision_are_not_compared_with_those_in_single():
    model = Recurrent()
    half = causal_lm(changed(model).bfloat16(), bos=V)
    assert half.dtype == torch.float32
    with pytest.raises(InputError, match="float32, computing in float32 before, and bfloat16"):
        compare(causal_lm(model, bos=V), half, groups=GROUPS)
    compare(causal_lm(model.bfloat16(), bos=V), half, groups=GROUPS)


def test_files_and_figures(tmp_path):
    change = compare(digits(0), digits(1), groups={"x": [[1, 2], [3]]}, canaries=PAIRS)
    loaded = Change.load(change.save(tmp_path / "change.safetensors"))
    assert str(loaded) == str(change)
    assert torch.equal(loaded.gain, change.gain)
    panels = change.plot().axes
    assert [panel.get_ylabel() for panel in panels] == ["gain (bits per token)", "gain of the secret (bits)"]
