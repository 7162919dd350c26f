"""Figures of results of language models: labelled axes, controls next to results, nothing if a gate failed."""

import numpy as np
import pytest
import torch

from kernelmem.text import canaries, causal_lm, exposure, extraction, paired_test, text_membership, token_losses
from tests.text.canary.tables import encode, table_lm
from tests.text.small_models import Bigram, V, random_documents


@pytest.fixture(scope="module")
def lm():
    return causal_lm(Bigram(), bos=V)


def labels(axes):
    return axes.get_xlabel(), axes.get_ylabel()


def test_losses_are_drawn_along_documents(lm):
    figure = token_losses(lm, random_documents(*[12] * 8, 30)).plot()
    along, per_document = figure.axes
    assert labels(along) == ("position in the document (tokens)", "bits per token")
    assert labels(per_document) == ("bits per token of a document", "documents")
    assert along.lines[0].get_xdata().tolist() == list(range(12))  # one document says nothing about quartiles
    assert sum(bar.get_height() for bar in per_document.patches) == 9


@pytest.mark.parametrize("lengths", [(0,), (1,), (3, 0, 5)])
def test_few_documents_are_drawn(lm, lengths):
    assert len(token_losses(lm, random_documents(*lengths)).plot().axes) == 2


def test_extraction_is_drawn_next_to_its_controls(lm):
    documents = random_documents(*[8] * 20)
    figure = extraction(lm, documents[:10], prefix=3, suffix=2, contexts=[[1, 2]], unseen=documents[10:]).plot()
    greedy, sampled = figure.axes
    assert labels(greedy) == ("text before the prefix", "share of documents")
    assert [text.get_text() for text in greedy.get_xticklabels()] == ["none", "context 1", "any"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "documents",
        "unseen documents",
        "the documents, by the reference",
    ]
    alone = extraction(lm, documents, prefix=3, suffix=2)
    shown = alone.plot().axes[1].containers[0].lines[0].get_ydata()
    assert shown.tolist() == [alone.rate("sampled").value]
    assert sampled.get_ylim()[1] >= max(line.get_ydata().max() for line in sampled.lines)


def test_membership_is_drawn_unless_a_gate_failed(lm):
    documents = random_documents(*[12] * 60)
    result = text_membership(lm, documents[:30], documents[30:])
    areas, curves = result.plot().axes
    assert [text.get_text() for text in areas.get_yticklabels()] == ["gate: blind", "gate: length", "loss", "min_k++"]
    assert labels(curves) == ("false-positive rate", "true-positive rate")
    assert curves.get_xlim()[0] == 0.1  # 30 unseen documents resolve no smaller rate
    loss = next(line for line in curves.lines if line.get_label() == "loss")
    rate, scores = 0.4, result.scores["loss"]
    threshold = scores[30:].sort(descending=True).values[int(rate * 30)]
    reached = np.interp(rate, loss.get_xdata(), loss.get_ydata())
    assert reached == pytest.approx(float((scores[:30] > threshold).double().mean()), abs=1 / 30)
    shifted = [torch.full_like(ids, 3) for ids in documents[30:]]
    (axes,) = text_membership(lm, documents[:30], shifted).plot().axes
    assert "gate failed" in axes.get_title(loc="left")


def test_canaries_are_drawn_with_their_null():
    design = canaries(8, encode, length=2, tiers=(1, 4))
    found = exposure(table_lm(), design)
    (axes,) = found.plot().axes
    assert labels(axes) == ("times inserted", "exposure (bits)")
    heights = [band.get_paths()[0].vertices[:, 1] for band in axes.collections if len(band.get_paths()[0].vertices) > 3]
    middle, error = found.tiers[1].null_mean, found.tiers[1].null_se
    assert heights[1].min() == pytest.approx(middle - 1.96 * error)
    assert heights[1].max() == pytest.approx(middle + 1.96 * error)
    test = paired_test(found, design)
    differences, bounds = test.plot().axes
    assert differences.get_ylabel() == "score, inserted minus twin"
    assert [text.get_text() for text in bounds.get_xticklabels()] == ["1", "4", "all"]
    assert [bar.get_height() for bar in bounds.patches] == [count.epsilon for count in (*test.tiers, test.all_pairs)]
