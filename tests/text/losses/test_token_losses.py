"""kernelmem.text.token_losses: closed forms, independence of the batch, targets, tables and files."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kernelmem import InputError, NumericalError
from kernelmem.text import CausalLM, TokenLosses, causal_lm, token_losses
from kernelmem.text.language_models.probes import probe_ids
from tests.profiles import examples
from tests.text.small_models import MODELS, Bigram, Recurrent, Uniform, V, random_documents
from tests.tolerances import EPS, SAFETY

RAGGED = st.lists(st.lists(st.integers(0, V - 1), max_size=12), min_size=1, max_size=6)
PER_DOCUMENT = {torch.float64: 1e-12, torch.float32: 1e-5 / math.log(2)}  # bits
UNIFORM = causal_lm(Uniform(), bos=0)
LMS: dict[object, CausalLM] = {}


def lm_of(name, dtype=torch.float64, bos=V):
    """Language models are made once: their probes cost more than the losses of a few tokens."""
    key = (name, dtype, bos)
    if key not in LMS:
        LMS[key] = causal_lm(MODELS[name]().to(dtype), bos=bos)
    return LMS[key]


@examples(0.5)
@given(RAGGED)
def test_uniform_logits(documents):
    losses = token_losses(UNIFORM, documents)
    n = sum(map(len, documents))
    torch.testing.assert_close(
        losses.token_bits, torch.full((n,), math.log2(V), dtype=torch.float64), rtol=SAFETY * EPS, atol=0
    )
    torch.testing.assert_close(losses.token_mu, -losses.token_bits, rtol=SAFETY * EPS, atol=0)
    assert not losses.token_sigma.any()
    assert all(
        bool(tied.all()) and not bool(correct.any()) for tied, correct in zip(losses.tied, losses.correct, strict=True)
    )


@examples(0.5)
@given(RAGGED, st.integers(0, 9), st.booleans())
def test_bigram_table(documents, seed, has_bos):
    model = Bigram(seed)
    losses = token_losses(causal_lm(model, bos=V if has_bos else None), documents)
    expected: list[list[float]] = []
    for ids in documents:
        for before, token in zip([V, *ids], ids, strict=False) if has_bos else itertools.pairwise(ids):
            p = model.table[before]
            mu = float((p * p.log2()).sum())
            others = max(float(q) for v, q in enumerate(p) if v != token)
            variance = float((p * (p.log2() - mu) ** 2).sum())
            expected.append([-math.log2(p[token]), math.log(p[token] / others), mu, math.sqrt(variance)])
    columns = [losses.token_bits, losses.token_margins, losses.token_mu, losses.token_sigma]
    values = torch.tensor(expected, dtype=torch.float64).reshape(-1, 4)
    torch.testing.assert_close(torch.stack(columns, 1), values, rtol=V * SAFETY * EPS, atol=V * SAFETY * EPS)
    assert losses.counts.tolist() == [len(ids) if has_bos else max(len(ids) - 1, 0) for ids in documents]


@pytest.mark.parametrize("dtype", PER_DOCUMENT)
@pytest.mark.parametrize("name", MODELS)
@examples(0.2)
@given(documents=RAGGED, order=st.randoms(use_true_random=False))
def test_losses_do_not_depend_on_the_batch(name, dtype, documents, order):
    """Alone, in a batch, and in a batch of another order: the losses of a document are the same."""
    lm = lm_of(name, dtype)
    losses = token_losses(lm, documents)
    alone = [token_losses(lm, [ids]) for ids in documents]
    torch.testing.assert_close(
        losses.per_document(), torch.cat([a.per_document() for a in alone]), rtol=0, atol=PER_DOCUMENT[dtype]
    )
    permutation = order.sample(range(len(documents)), len(documents))
    permuted = token_losses(lm, [documents[i] for i in permutation])
    for place, i in enumerate(permutation):
        torch.testing.assert_close(permuted.bits[place], alone[i].token_bits, rtol=0, atol=PER_DOCUMENT[dtype])
        torch.testing.assert_close(permuted.sigma[place], alone[i].token_sigma, rtol=0, atol=20 * PER_DOCUMENT[dtype])


@examples(0.4)
@given(documents=RAGGED, constant=st.floats(-50, 50))
def test_constants_added_to_logits_change_nothing(documents, constant):
    model = Recurrent().double()
    shifted = causal_lm(model, bos=V, forward=lambda model, ids: model(ids) + constant * (1 + ids[:, :, None]))
    a, b = token_losses(lm_of("LSTM"), documents), token_losses(shifted, documents)
    tolerance = V * SAFETY * EPS * (1 + abs(constant) * (V + 1))
    for column in ("token_bits", "token_margins", "token_mu", "token_sigma"):
        torch.testing.assert_close(getattr(a, column), getattr(b, column), rtol=0, atol=tolerance)


@examples(0.5)
@given(RAGGED, st.randoms(use_true_random=False), st.booleans())
def test_targets_select_losses(documents, choice, as_labels):
    everything = token_losses(lm_of("Bigram"), documents)
    masks = [torch.tensor([choice.random() < 0.5 for _ in ids], dtype=torch.bool) for ids in documents]
    labels = [[*torch.tensor(ids).where(mask, -100).tolist(), -100] for ids, mask in zip(documents, masks, strict=True)]
    losses = token_losses(lm_of("Bigram"), documents, targets=labels if as_labels else masks)
    for i, mask in enumerate(masks):
        torch.testing.assert_close(losses.bits[i], everything.bits[i][mask], rtol=0, atol=1e-12)
        assert losses.split(losses.positions)[i].tolist() == mask.nonzero()[:, 0].tolist()
    assert losses.counts.tolist() == [int(mask.sum()) for mask in masks]


def test_more_precision_on_request():
    documents = random_documents(5, 12)
    exact = token_losses(lm_of("LSTM"), documents).token_bits
    single = lm_of("LSTM", torch.float32)
    error = (token_losses(single, documents).token_bits - exact).abs().max()
    assert 1e-9 < error < 1e-4
    assert (token_losses(single, documents, dtype=torch.float64).token_bits - exact).abs().max() < 1e-12


def test_impossible_tokens_have_infinite_bits():
    losses = token_losses(causal_lm(Bigram(zeros=True), bos=V), [[4, 1], [2]])
    assert losses.token_bits.isinf().tolist() == [True, False, False]
    assert bool(losses.token_mu.isfinite().all())
    assert bool(losses.token_sigma.isfinite().all())
    assert losses.per_document().tolist()[0] == math.inf


def test_ties_are_neither_right_nor_wrong():
    model = Bigram()
    with torch.no_grad():
        model.table[:] = torch.tensor([0.25, 0.25 * math.exp(5e-5), 0.2, *[0.2 / 8] * 8])
    losses = token_losses(causal_lm(model, bos=V), [[0, 1, 2]])
    assert losses.correct[0].tolist() == [False, False, False]
    assert losses.tied[0].tolist() == [True, True, False]
    model.table[:, 0] = 0.3
    assert token_losses(causal_lm(model, bos=V), [[0, 1, 2]]).correct[0].tolist() == [True, False, False]


def test_one_word_vocabulary():
    losses = token_losses(causal_lm(nn.Embedding(1, 1), bos=0), [[0, 0]])
    assert losses.token_bits.tolist() == [0, 0]
    assert losses.correct[0].all()


def test_documents_without_tokens_or_context():
    losses = token_losses(lm_of("LSTM", bos=None), [[], [3], [1, 2]])
    assert losses.counts.tolist() == [0, 0, 1]
    assert losses.unscored.tolist() == [0, 1, 1]
    assert losses.per_document().tolist()[:2] == [0, 0]
    assert "2 first tokens" in str(losses)
    assert len(token_losses(lm_of("LSTM"), [[], []]).token_bits) == 0


def test_bits_per_byte():
    losses = token_losses(UNIFORM, [[1, 2, 3], [], [4]])
    per_byte = losses.per_byte(["naïve", "", b"\xff\xfe"])  # 6 and 2 bytes
    torch.testing.assert_close(per_byte, torch.tensor([3 / 6, 0, 1 / 2], dtype=torch.float64) * math.log2(V))
    for texts in (["a", "b"], ["", "", "a"], "abc", [1, 2, 3], ["a", "", "\udc00"]):
        with pytest.raises(InputError) as raised:
            losses.per_byte(texts)
        assert "abc" not in str(raised.value)  # texts may be private
    with pytest.raises(InputError, match="no token comes before"):
        token_losses(causal_lm(Uniform()), [[1, 2]]).per_byte(["ab"])
    completion = token_losses(causal_lm(Uniform()), [[1, 2]], targets=[[False, True]])
    assert completion.per_byte(["b"]).tolist() == pytest.approx([math.log2(V)])


def test_table_file_and_text(tmp_path):
    losses = token_losses(
        lm_of("attention"), random_documents(4, 0, 2), targets=[[True, False, True, True], [], [False, True]]
    )
    frame = losses.to_frame()
    assert list(frame["document"]) == [0, 0, 0, 2]
    assert list(frame["position"]) == [0, 2, 3, 1]
    assert frame["bits"].to_numpy() == pytest.approx(losses.token_bits.numpy())
    loaded = TokenLosses.load(losses.save(tmp_path / "losses.safetensors"))
    assert str(loaded) == str(losses)
    assert torch.equal(loaded.bits[2], losses.bits[2])
    assert "bits per token" in str(losses)
    assert len(str(losses).splitlines()) < 20


def test_documents_that_start_with_bos_are_noted():
    assert "tokenized with BOS" in str(token_losses(UNIFORM, [[0, 1], [], [0]]))
    assert not token_losses(UNIFORM, [[0, 1], [1]]).notes


def test_progress_counts_passes():
    calls = []
    token_losses(lm_of("LSTM"), random_documents(3, 3, 0), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(2, 2)]


def test_diverged_models_are_refused():
    model = Bigram()
    probed = torch.cat(probe_ids(V, V))
    bad = next(token for token in range(V) if token not in probed and token - 1 not in probed)
    model.table[bad] = -1  # log of a negative number after this token
    lm = causal_lm(model, bos=V)
    assert bool(token_losses(lm, [[1, bad], [2]]).token_bits.isfinite().all())
    with pytest.raises(NumericalError, match="NaN"):
        token_losses(lm, [[1, bad, 2]])


@pytest.mark.parametrize(
    "options",
    [
        {"documents": [[V]]},
        {"documents": [1, 2]},
        {"lm": Uniform()},
        {"targets": [[True]]},
        {"targets": [[True, True], [True, False]]},
        {"targets": [[1, 2], [1]]},
        {"targets": [[2, -100], [5]]},  # shifted labels
        {"targets": [[0, 1], [1]]},
        {"targets": "all"},
        {"window": 0},
        {"stride": 1},
        {"window": 3, "stride": 4},
        {"window": 2.5},
        {"dtype": torch.float16},
        {"memory": "100B"},
        {"memory": 0},
        {"progress": 3},
    ],
)
def test_other_arguments_are_refused(options):
    arguments = {"lm": lm_of("LSTM"), "documents": [[1, 2], [5]], **options}
    with pytest.raises(InputError):
        token_losses(**arguments)
