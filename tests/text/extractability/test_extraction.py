"""Extraction compared with generation and with samples; controls, classes, spans; defects of other tools."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core import InputError
from kernelmem.text import Sampling, causal_lm, extraction, ngram_model
from tests.profiles import examples
from tests.text.extractability.models import Table, cycle_lm, pair_lm, table_lm


def generate(lm, prompt, n):
    """Greedy decoding, token by token."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(lm.next_log_probs([ids])[0].argmax()))
    return ids[len(prompt) :]


@given(seed=st.integers(0, 99), context=st.lists(st.integers(0, 4), min_size=1, max_size=3), data=st.data())
@examples(0.4)
def test_greedy_extraction_is_greedy_decoding(seed, context, data):
    """Suffixes are what the model generates, with a token changed in some of them."""
    lm, documents, expected = pair_lm(seed), [], []
    for _ in range(4):
        prompt = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=1))
        suffix = generate(lm, prompt, 3)
        place = data.draw(st.integers(0, 5))
        if place < 3:
            suffix[place] = data.draw(st.integers(0, 4))
        documents.append([*prompt, *suffix])
        expected.append([generate(lm, [*before, *prompt], 3) == suffix for before in ([], context)])
    found = extraction(lm, documents, prefix=1, suffix=3, contexts=[context])
    assert found.windows.greedy.T.tolist() == expected
    assert found.extracted().tolist() == [any(row) for row in expected]


def frequency_test(n_samples):
    """z-score of the number of samples that equal the suffix, for several sampling distributions."""
    rng = np.random.default_rng(0)
    lm = table_lm(1, scale=1.5)
    p = lm.next_log_probs([[i] for i in range(5)])
    for sampling in (Sampling(), Sampling(temperature=0.6, top_k=3), Sampling(temperature=1.7, top_p=0.8)):
        q = sampling.log_probs(p).exp().numpy()
        suffix = [int(q[2].argmax()), int(q[int(q[2].argmax())].argmax()), 0]
        suffix[2] = int(np.flatnonzero(q[suffix[1]])[-1])
        log_p = float(extraction(lm, [[1, 2, *suffix]], prefix=2, suffix=3, sampling=sampling).windows.log_p[0, 0])
        token, alive = np.full(n_samples, 2), np.ones(n_samples, dtype=bool)
        for wanted in suffix:
            token = (rng.random((n_samples, 1)) > q[token].cumsum(1)[:, :-1]).sum(1)
            alive &= token == wanted
        yield (alive.sum() - n_samples * math.exp(log_p)) / math.sqrt(n_samples * math.exp(log_p))


def test_samples_are_emitted_with_the_stated_probability():
    assert max(map(abs, frequency_test(4000))) < 4


@pytest.mark.soak
def test_many_samples_are_emitted_with_the_stated_probability():
    assert max(map(abs, frequency_test(10**5))) < 4


def test_documents_are_scored_alone_whatever_the_batch():
    lm = table_lm(3)
    documents = np.random.default_rng(1).integers(0, 5, (12, 7)).tolist()
    together = extraction(lm, documents, prefix=3, suffix=2)
    reverse = extraction(lm, documents[::-1], prefix=3, suffix=2).windows
    for i, ids in enumerate(documents):
        alone = extraction(lm, [ids], prefix=3, suffix=2).windows
        for other, place in ((together.windows, i), (reverse, -1 - i)):
            assert torch.allclose(other.log_p[:, place], alone.log_p[:, 0], rtol=1e-12, atol=0)
            assert torch.allclose(other.margin[:, place], alone.margin[:, 0], rtol=1e-12, atol=1e-12)
            assert other.greedy[:, place].tolist() == alone.greedy[:, 0].tolist()


def test_the_argmax_of_one_document_does_not_count_for_another():
    """The cycle follows 1 by 2: "1 2" and "3 4" are emitted, "1 4" and "3 2" are not."""
    found = extraction(cycle_lm(), [[1, 2], [3, 4], [1, 4], [3, 2]], prefix=1, suffix=1)
    assert found.extracted().tolist() == [True, True, False, False]


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_every_token_of_the_suffix_counts_and_none_of_the_prefix(wrong):
    suffix = [3, 4, 5]
    suffix[wrong] = 1
    lm = cycle_lm()
    found = extraction(lm, [[5, 2, *suffix], [5, 2, 3, 4, 5]], prefix=2, suffix=3)
    assert found.extracted().tolist() == [False, True]
    step = [float(lm.next_log_probs([[2, *suffix[:i]]])[0, suffix[i]]) for i in range(3)]
    assert float(found.windows.log_p[0, 0]) == pytest.approx(sum(step), rel=1e-13)


def test_token_0_is_a_word():
    """It pads in some tools, where it has probability 1 or ends the document."""
    found = extraction(cycle_lm(), [[4, 5, 0, 1], [4, 5, 0, 0]], prefix=1, suffix=3)
    assert found.extracted().tolist() == [True, False]
    assert float(found.windows.log_p.max()) < 0


def test_equal_logits_are_a_tie():
    lm = causal_lm(Table(torch.zeros(3, 3, dtype=torch.float64)), bos=0)
    found = extraction(lm, [[1, 0], [1, 2]], prefix=1, suffix=1)
    assert found.windows.tie.all()
    assert found.extracted().tolist() == [True, False]
    assert "depend on rounding" in str(found)


def random_documents(n, length, seed):
    return np.random.default_rng(seed).integers(0, 8, (n, length)).tolist()


def test_a_model_that_stores_its_documents_emits_them_and_no_others():
    members, unseen = random_documents(30, 24, 0), random_documents(40, 24, 1)
    found = extraction(ngram_model(members, order=9), members, unseen=unseen, prefix=12, suffix=8)
    assert (found.rate().value, found.unseen_rate().value) == (1.0, 0.0)
    assert found.excess().low > 0.8
    assert found.classes().tolist() == [3] * 30
    assert found.reference_name.startswith("NgramModel of order 5")


def test_a_model_that_treats_both_alike_has_no_excess():
    """Sentences of a grammar that every model of the language emits: rate 1, excess 0, all reconstructed."""
    grammar = [[i, (i + 1) % 6, (i + 2) % 6, (i + 3) % 6] * 3 for i in range(6)]
    found = extraction(cycle_lm(), [row[:4] for row in grammar], unseen=grammar, prefix=1, suffix=3)
    assert found.rate().value == found.unseen_rate().value == 1.0
    assert found.excess().low < 0 < found.excess().high
    assert set(found.classes(recited=3).tolist()) == {2}
    assert set(found.classes(recited=2).tolist()) == {1}


def test_sampled_extraction_needs_n_samples():
    lm, document = cycle_lm(strength=1.0), [[1, 2, 3, 4]]
    log_p = float(extraction(lm, document, prefix=1, suffix=3).windows.log_p[0, 0])
    n = math.log(0.5) / math.log1p(-math.exp(log_p))
    for factor, expected in ((0.99, False), (1.01, True)):
        found = extraction(lm, document, prefix=1, suffix=3, sampling=Sampling(n=factor * n))
        assert found.extracted("sampled").tolist() == [expected]


def test_overlapping_windows_are_one_span():
    found = extraction(cycle_lm(), [[0, 1, 2, 3, 4, 5, 0, 3, 3, 4, 5], [2, 2]], prefix=1, suffix=2, stride=1)
    assert found.spans().values.tolist() == [[0, 1, 7], [0, 9, 11]]
    assert (len(found.windows.document), found.n_documents, found.n_short) == (9, 1, 1)
    frame = found.to_frame()
    assert frame.loc[0, ["start", "greedy", "copies", "holders", "class"]].tolist() == [1, True, 1, 1, "recollected"]
    assert frame["copies"].tolist() == [1, 1, 2, 2, 1, 1, 1, 2, 2]  # "3 4" and "4 5" occur twice


def test_adjacent_windows_are_one_span():
    found = extraction(cycle_lm(), [[0, 1, 2, 3, 4], [0, 1, 2, 2, 2]], prefix=1, suffix=2, stride=2)
    assert found.spans().values.tolist() == [[0, 1, 5], [1, 1, 3]]


def test_spans_are_counted_in_documents_and_in_characters():
    """The span "1 2 3" is in two documents, "4 5" too; another corpus has neither (0: in none)."""
    documents = [[0, 1, 2, 3, 3, 4, 5], [1, 2, 3, 1, 2, 3], [4, 5, 3]]
    found = extraction(cycle_lm(), documents, prefix=1, suffix=2, stride=1)

    def decode(ids):
        return "".join("<" + "x" * i + ">" for i in ids)

    spans = found.spans(documents=documents, decode=decode)
    assert spans.iloc[0].tolist() == [0, 1, 4, 3, 2, 12]
    assert spans.iloc[1].tolist() == [0, 5, 7, 2, 2, 13]
    assert found.spans(documents=documents, corpus=[[1, 2], [5, 4]])["holders"].tolist() == [0] * len(spans)
    assert found.spans("sampled", documents=documents).columns.tolist() == [
        "document",
        "start",
        "stop",
        "copies",
        "holders",
    ]
    other = [[0, 1, 2, 3, 3, 4, 5], [1, 2, 3, 1, 2, 4], [4, 5, 3]]
    for change in (
        {"corpus": [[1]]},
        {"documents": [[1]]},
        {"documents": other},
        {"documents": documents, "decode": lambda ids: ids},
    ):
        with pytest.raises(InputError, match=r"documents|decode"):
            found.spans(**change)


def test_heat_is_the_most_probable_window_over_each_token():
    lm, ids = table_lm(4), [3, 1, 4, 1, 0, 2, 3]
    found = extraction(lm, [[0, 0], ids], prefix=2, suffix=3, stride=1)
    log_p = found.windows.log_p[0] / math.log(10)
    expected = [log_p[0], log_p[:2].max(), log_p[:3].max(), log_p[1:].max(), log_p[2]]
    assert found.heat(1).tolist() == [-math.inf] * 2 + [float(value) for value in expected]
    assert found.heat(0).tolist() == []
    with pytest.raises(InputError, match="document"):
        found.heat(2)


def test_the_continuation_of_a_repetition_is_reconstructed():
    """ "1 2 1 2" goes on with "1 2": no memory is needed. The second suffix breaks off, the third is no repetition yet."""
    documents = [[1, 2, 1, 2, 1, 2], [1, 2, 1, 2, 1, 1], [0, 0, 1, 2, 1, 2], [3, 3, 3, 3, 3, 3]]
    found = extraction(ngram_model(documents, order=6), documents, prefix=4, suffix=2)
    assert found.repeating.tolist() == [True, False, False, True]
    assert found.classes(recited=20)[[0, 2, 3]].tolist() == [2, 3, 2]


def test_other_numbers_of_windows_are_not_compared():
    found = extraction(cycle_lm(), [[1, 2, 3]], unseen=[[1, 2, 3, 4, 5]], prefix=1, suffix=1, stride=1)
    with pytest.raises(InputError, match="windows per document"):
        found.excess()
    assert "not comparable" in str(found)


def test_the_result_holds_no_tokens_and_survives_its_file(tmp_path):
    found = extraction(cycle_lm(), [[1, 2, 3]] * 5, unseen=[[3, 1, 3]], prefix=1, suffix=2, contexts=[[4]])
    loaded = type(found).load(found.save(tmp_path / "extraction.km"))
    assert loaded.to_frame().equals(found.to_frame())
    assert str(loaded) == str(found)
    assert found.classes().tolist() == [1] * 5
    assert found.rate(context=1).value == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"documents": [[1, 2]]}, "prefix \\+ suffix"),
        ({"documents": [[1, 2, 9]]}, "token id 9"),
        ({"unseen": [[1]]}, "unseen of at most 1"),
        ({"contexts": [[9]]}, "contexts"),
        ({"prefix": 0}, "prefix"),
        ({"stride": 0}, "stride"),
        ({"sampling": Sampling}, "sampling"),
        ({"lm": Table(torch.zeros(6, 6))}, "lm"),
        ({"reference": ngram_model([[0, 1]])}, "2 tokens"),
    ],
)
def test_other_arguments_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        extraction(**({"lm": cycle_lm(), "documents": [[1, 2, 3]], "prefix": 1, "suffix": 2} | change))


def test_questions_without_an_answer_are_refused():
    found = extraction(cycle_lm(), [[1, 2, 3]], prefix=1, suffix=2)
    for call, message in (
        (found.excess, "unseen"),
        (lambda: found.rate("beam"), "method"),
        (lambda: found.rate(context=1), "context"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert "no control" in str(found)
