"""Audit of language models: one that stores its documents, nulls, gates, and what is refused."""

import dataclasses
import json
import re
from types import SimpleNamespace

import pytest
import torch

import kernelmem as km
from kernelmem.text import canaries, causal_lm, coverage, extraction, paired_test, text_membership
from tests.auditing.text.models import Recall, decode, encode, random_texts
from tests.text.small_models import Uniform

TRAIN, UNSEEN = (random_texts(25, 30, seed) for seed in (1, 2))
OPTIONS = km.TextAuditOptions(encode=encode, date="2026-01-02", samples=31)
PAIRS = canaries(12, encode, format="key{code}:{secret}", length=2, tiers=(1, 4), seed=3)
ROWS = PAIRS.insert(TRAIN, encode, context=6, seed=4)


def lm_of(documents, **options):
    return causal_lm(Recall(documents, **options), bos=0)


def status(result):
    return {verdict.question: verdict.status for verdict in result.document.verdicts}


def failed(result):
    return [gate.gate.name for gate in result.document.gates if gate.gate.passed is False]


@pytest.fixture(scope="module")
def trained():
    """A model that stores its documents and canaries."""
    return lm_of(ROWS.ids)


@pytest.fixture(scope="module")
def result(trained):
    options = dataclasses.replace(OPTIONS, trained_on=ROWS)
    return km.text_audit(trained, TRAIN, UNSEEN, canaries=PAIRS, reference=lm_of([]), options=options)


def test_a_model_that_stores_its_documents_is_found_by_every_question(result):
    assert failed(result) == []
    assert status(result) == dict.fromkeys(("canaries", "membership", "extraction", "change"), "found")
    document = result.document
    assert document.data.canary_share == coverage(PAIRS, ROWS).share
    assert document.canaries.n_right == 12
    assert document.canaries.epsilon == document.canaries.ceiling > 0
    assert [tier.copies for tier in document.canaries.tiers] == [0, 1, 4]
    assert document.canaries.tiers[0].emitted.value == 0
    *after, beginning = document.canaries.contexts
    assert beginning == "at the beginning of a document"
    assert all(re.fullmatch(r"after a piece of unseen document \d+", name) for name in after)
    greedy = document.extraction.rates[0]
    assert greedy.members.value > 0.5
    assert greedy.unseen.value == 0
    assert document.spans[0].claimed
    assert {span.kind for span in document.spans} == {"recollected"}
    assert all(len(found.saved) == found.n_tokens for found in document.documents)


def test_numbers_are_those_of_the_functions_of_the_package(result, trained):
    ids = [[encode(text) for text in group] for group in (TRAIN, UNSEEN)]
    reference = lm_of([])
    found = text_membership(trained, *ids, reference=reference)
    attack = next(attack for attack in result.document.membership.attacks if attack.name == "reference")
    assert attack.auc == found.results["reference"].auroc
    answer = result.document.extraction
    assert (answer.prefix, answer.suffix) == (24, 6)
    rates = extraction(trained, ids[0], prefix=24, suffix=6, unseen=ids[1], reference=reference)
    assert answer.rates[0].excess == rates.excess("greedy")
    first = result.document.documents[0]
    log_p = [next(iter(lm.log_probs([ids[0][first.document]]))) for lm in (reference, trained)]
    rows = torch.tensor(ids[0][first.document])[:, None]
    saved = (log_p[1] - log_p[0]).gather(1, rows)[:, 0] / torch.tensor(2.0).log().double()
    assert torch.allclose(torch.tensor(first.saved).double(), saved, atol=6e-4)
    bits = torch.zeros(12, 2)
    for row in result.document.canary_findings:
        bits[row.pair, PAIRS.inserted[row.pair]], bits[row.pair, 1 - PAIRS.inserted[row.pair]] = row.bits, row.twin_bits
    assert paired_test(-bits, PAIRS).all_pairs.n_right == result.document.canaries.n_right


def test_documents_that_differ_without_the_model_blank_the_verdicts(trained):
    without_a = [text.replace("a", "b").replace("c", "d") for text in UNSEEN]
    found = km.text_audit(trained, TRAIN, without_a, options=OPTIONS)
    assert failed(found) == ["blind baseline"]
    assert status(found)["membership"] == status(found)["extraction"] == "no-claim"
    assert found.document.membership.attacks == ()
    assert not any(span.claimed for span in found.document.spans)


def test_equal_probabilities_are_nothing_found():
    class Constant(torch.nn.Module):
        def forward(self, ids):
            return torch.zeros(*ids.shape, 38)

    found = km.text_audit(causal_lm(Constant(), bos=0), TRAIN, UNSEEN, canaries=PAIRS, options=OPTIONS)
    expected = {"canaries": "nothing-found", "membership": "nothing-found", "extraction": "nothing-found"}
    assert status(found) == {**expected, "change": "not-run"}
    for attack in found.document.membership.attacks:
        assert (attack.auc.value, attack.p, attack.constant) == (0.5, 1.0, True)
        assert all(rate.true_positive_rate is None or rate.true_positive_rate.value == 0 for rate in attack.rates)
    answer = found.document.canaries
    assert (answer.n_decided, answer.p, answer.epsilon, answer.tiers[0].exposure.value) == (0, 1.0, 0.0, 0.0)
    assert "tells nobody apart" in str(found)
    assert "No canaries" not in str(found)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 7))])
def test_a_model_that_never_saw_the_documents_is_not_accused(seed):
    others = random_texts(25, 30, 100 + seed)
    lm = lm_of([encode(text) for text in others], seed=seed, dtype=torch.float32)
    found = km.text_audit(lm, TRAIN, UNSEEN, canaries=PAIRS, reference=lm_of([], seed=seed), options=OPTIONS)
    assert status(found) == dict.fromkeys(("canaries", "membership", "extraction", "change"), "nothing-found")
    assert not any(span.claimed for span in found.document.spans)
    assert found.document.canaries.epsilon == 0


@pytest.mark.soak
def test_claims_about_models_that_never_saw_the_documents_are_as_rare_as_stated():
    """60 audits at level .01 for each question: more than 4 claims have probability 4e-4."""
    claims = dict.fromkeys(("canaries", "membership", "extraction", "change"), 0)
    for seed in range(60):
        train, unseen, others = (random_texts(25, 30, 1000 * seed + k) for k in range(3))
        pairs = canaries(12, encode, format="key{code}:{secret}", length=2, tiers=(1, 4), seed=seed)
        lm, base = lm_of([encode(text) for text in others], seed=seed), lm_of([], seed=seed)
        found = km.text_audit(lm, train, unseen, canaries=pairs, reference=base, options=OPTIONS, seed=seed)
        for question, answer in status(found).items():
            claims[question] += answer == "found"
    assert max(claims.values()) <= 4


def test_exchanged_documents_are_not_said_to_be_memorized(trained):
    found = km.text_audit(trained, UNSEEN, TRAIN, options=OPTIONS)
    assert "knows less well" in found.document.verdicts[1].headline
    assert "are not exchanged" in found.document.verdicts[1].detail
    assert status(found)["extraction"] == "nothing-found"
    assert not any(span.claimed for span in found.document.spans)


def test_permuted_coins_find_nothing(trained):
    """Coins that are not those of the training: twins that are known fail their gate, and nothing is claimed."""
    exchanged = dataclasses.replace(PAIRS, inserted=1 - PAIRS.inserted)
    options = dataclasses.replace(OPTIONS, trained_on=ROWS)
    found = km.text_audit(trained, TRAIN, UNSEEN, canaries=exchanged, options=options)
    assert status(found)["canaries"] == "no-claim"
    assert failed(found) == ["canary coverage", "twins"]


def test_a_reference_that_is_the_model_itself_is_named(trained):
    found = km.text_audit(trained, TRAIN, UNSEEN, reference=trained, options=OPTIONS)
    assert "reference differs" in failed(found)
    assert (status(found)["change"], status(found)["membership"]) == ("no-claim", "no-claim")


def test_unseen_documents_that_were_trained_on_are_left_out_and_counted(trained):
    found = km.text_audit(trained, TRAIN + TRAIN[:3], UNSEEN + TRAIN[:4], options=OPTIONS).document
    assert (found.data.seen, found.data.exact_repeats, found.data.n_train_used, found.data.n_unseen_used) == (
        4,
        3,
        25,
        25,
    )
    assert max(span.copies for span in found.spans) == 2
    assert "4 unseen documents equal training documents" in " ".join(str(km.TextAudit(found)).split())
    with pytest.raises(km.InputError, match="all of which are training documents"):
        km.text_audit(trained, TRAIN, TRAIN[:3], options=OPTIONS)
    nearly = [f"{text[:29]}9" for text in TRAIN]
    few = dataclasses.replace(OPTIONS, repeat_length=12)
    assert "shared text" in failed(km.text_audit(trained, TRAIN, nearly, options=few))


def test_without_canaries_the_report_says_what_membership_rests_on(trained):
    found = km.text_audit(trained, [encode(text) for text in TRAIN], [encode(text) for text in UNSEEN[:10]])
    assert status(found) == {
        **{"canaries": "not-run", "membership": "not-run", "extraction": "found", "change": "not-run"}
    }
    assert "Zhang 2024" in found.document.verdicts[1].limits[0]
    assert found.document.context.randomized.startswith("Nothing")
    assert any("Fewer than 20" in item for item in found.document.not_tested)


def test_texts_and_ids_give_the_same_numbers(trained):
    ids = [[encode(text) for text in group] for group in (TRAIN, UNSEEN)]
    first, second = km.text_audit(trained, TRAIN, UNSEEN, options=OPTIONS), km.text_audit(trained, *ids)
    assert first.document.table == second.document.table
    assert first.document.extraction == second.document.extraction
    assert (first.document.data.unit, second.document.data.unit) == ("character", "token")


def test_a_tokenizer_with_special_tokens_is_read_without_them(trained):
    class Tokenizer:
        def __call__(self, text):
            return {"input_ids": self.encode(text)}

        def encode(self, text, add_special_tokens=True):
            return [0] * add_special_tokens + encode(text)

        def decode(self, ids):
            return decode(ids)

    options = dataclasses.replace(OPTIONS, encode=Tokenizer(), reveal="all", reason="test")
    found = km.text_audit(trained, TRAIN, UNSEEN, options=options).document
    assert found.spans[0].text in TRAIN[found.spans[0].document]
    assert "".join(found.documents[0].text) == TRAIN[found.documents[0].document]
    added = dataclasses.replace(OPTIONS, encode=lambda text: [0, *encode(text)])
    with pytest.raises(km.InputError, match="adds tokens to the empty text"):
        km.text_audit(trained, TRAIN, UNSEEN, options=added)


def test_a_random_part_of_many_documents_is_evaluated(trained):
    options = dataclasses.replace(OPTIONS, n_documents=20)
    found = km.text_audit(trained, TRAIN, UNSEEN, options=options, seed=5).document
    assert (found.data.n_train_used, found.data.n_unseen_used) == (20, 20)
    assert len(set(found.table.document[:20])) == 20
    assert "random part" in found.not_tested[-1]


def test_equal_inputs_give_equal_documents(trained):
    first, second = (json.loads(km.text_audit(trained, TRAIN, UNSEEN, options=OPTIONS).to_json()) for _ in range(2))
    for values in (first, second):
        del values["seconds"], values["kernelmem_sha256"]
    assert first == second


def test_what_could_not_have_been_found_is_not_said_to_be_nothing(trained):
    few = canaries(6, encode, format="key{code}:{secret}", length=1, tiers=(1,), seed=3)
    found = km.text_audit(lm_of([]), TRAIN[:3], UNSEEN[:2], canaries=few, options=OPTIONS)
    assert set(status(found).values()) == {"not-run"}
    assert "at least 7 pairs are needed" in str(found)
    assert "Fewer than 20 documents of a kind" in str(found)
    assert all(row.bits_saved > 0 for row in found.document.documents)


def test_a_model_with_few_positions_is_asked_short_prompts():
    class Short(Recall):
        config = SimpleNamespace(n_positions=20)

    lm = causal_lm(Short([encode(text) for text in TRAIN]), bos=0)
    options = dataclasses.replace(OPTIONS, contexts=["abcd"])
    found = km.text_audit(lm, TRAIN, UNSEEN, options=options).document
    assert (found.data.n_cut, found.extraction.prefix + found.extraction.suffix) == (50, 16)
    with pytest.raises(km.InputError, match="contexts of up to 30 tokens for a Short of 20 positions"):
        km.text_audit(lm, TRAIN, UNSEEN, options=dataclasses.replace(OPTIONS, contexts=TRAIN[:1]))
    with pytest.raises(km.InputError, match="at most 16 tokens"):
        km.text_audit(lm, TRAIN, UNSEEN, options=dataclasses.replace(options, prefix=15, suffix=5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reveal": "everything"}, "reveal="),
        ({"reveal": "all"}, "without a reason"),
        ({"n_documents": 3}, "n_documents=3"),
        ({"sampling": 3}, "sampling=3"),
        ({"encode": 3}, "encode=3"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(km.InputError, match=message):
        km.TextAuditOptions(**options)


def test_what_is_missing_is_named(trained):
    with pytest.raises(km.InputError, match="no function that gives their token ids"):
        km.text_audit(trained, TRAIN, UNSEEN)
    for train, message in (("a text", "train as a single text"), ([TRAIN[0], [1, 2]], "values that are not text")):
        with pytest.raises(km.InputError, match=message):
            km.text_audit(trained, train, UNSEEN, options=OPTIONS)
    with pytest.raises(km.InputError, match="without a function from token ids"):
        km.text_audit(trained, [[1, 2]], [[2, 3]], options=km.TextAuditOptions(reveal="spans"))
    options = dataclasses.replace(OPTIONS, trained_on=7)
    with pytest.raises(km.InputError, match="batches=7"):
        km.text_audit(trained, TRAIN, UNSEEN, canaries=PAIRS, options=options)
    with pytest.raises(km.InputError, match="a reference of 11 tokens"):
        km.text_audit(trained, TRAIN, UNSEEN, reference=causal_lm(Uniform(), bos=0), options=OPTIONS)
