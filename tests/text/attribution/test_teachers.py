"""Teachers of a sentence compared with the ledger, under permutation, with the definition of the tangent kernel."""

import math

import pytest
import torch

import kernelmem as km
from kernelmem import InputError
from kernelmem.text import (
    Teachers,
    TeachersOptions,
    document_batch,
    document_loss,
    tangent_teachers,
    teachers,
)
from tests.text.small_models import Recurrent, V, random_documents

SECRET = [3, 1, 4, 1, 5]
DOCUMENTS = [*random_documents(6, 4, 7), torch.tensor([9, *SECRET, 2]), torch.tensor([8, 8, 8]), torch.tensor(SECRET)]
UNUSED = 4  # never in a batch; the last document


def output(outputs, y):
    return outputs[:, 0]


def record(directory, order=(0, 1, 2, 3, 4, 5), dtype=torch.float64):
    """Return (model, run): an LSTM trained on the documents numbered by ``order``."""
    model = Recurrent().to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    number = {document: i for i, document in enumerate(order)}
    with km.Recorder(model, optimizer, directory, loss=output, forward=document_loss) as recorder:
        for batch in ([0, 3], [1, 5], [2, 3, 5]):  # padded to 8, 6 and 8 tokens
            rows = document_batch([DOCUMENTS[i] for i in batch], bos=V)
            optimizer.zero_grad()
            document_loss(model, rows).mean().backward()
            recorder.step(torch.tensor([number[i] for i in batch]), rows, torch.zeros(len(batch), dtype=torch.int64))
    return model, km.Run.open(directory)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def taught(recorded):
    model, run = recorded
    return teachers(run, model, SECRET, DOCUMENTS, bos=V, decode=lambda ids: "".join(chr(97 + i) for i in ids))


def test_contributions_and_terms_add_up_to_the_change_of_bits(recorded, taught):
    model, run = recorded
    rows = document_batch([SECRET], bos=V)
    after = float(document_loss(model, rows).detach()) / math.log(2)
    before = float(document_loss(Recurrent().double(), rows).detach()) / math.log(2)
    change = taught.change
    terms = taught.saved.sum(0) + change.decay + change.rounding + change.buffers + change.residual
    torch.testing.assert_close(terms, change.saved, rtol=0, atol=1e-11)
    assert change.residual.abs().max() < 1e-11
    assert float(change.before.sum()) == pytest.approx(before, abs=1e-11)
    assert float(change.after.sum()) == pytest.approx(after, abs=1e-11)
    ledger = km.ledger(run, model, rows, loss=output, forward=document_loss, progress=False)
    expected = -ledger.contributions[0, :, 0] / math.log(2)
    torch.testing.assert_close(taught.contribution, expected, rtol=0, atol=1e-11)
    assert taught.contribution.abs().min() == 0 < taught.contribution.abs().median()


def test_a_document_that_was_never_used_teaches_nothing(taught):
    assert taught.saved[UNUSED].tolist() == [0.0] * 5
    assert taught.passes.tolist() == [1, 1, 1, 2, 0, 2]


def test_documents_that_contain_the_sentence_are_its_own(taught):
    assert taught.own.tolist() == [False, False, False, True, False, True]
    others = taught.contribution[[0, 1, 2, 4]]
    assert float(taught.excess[3]) == pytest.approx(float(taught.contribution[3] - others.mean()), abs=1e-12)
    assert float(taught.excess[0]) == pytest.approx(float(others[0] - others[1:].mean()), abs=1e-12)
    torch.testing.assert_close(
        taught.token_excess[5], taught.saved[5] - taught.saved[[0, 1, 2, 4]].mean(0), rtol=0, atol=1e-12
    )
    assert taught.rank(5) == (1, 5)
    assert {i for i, _ in taught.top(2)} == {3, 5}
    text = str(taught)
    assert "2 own copies: " in text
    assert "4 others" in text


def test_permuted_documents_have_permuted_contributions(taught, tmp_path):
    order = [5, 2, 0, 4, 3, 1]
    model, run = record(tmp_path / "run", order)
    kinds = ["a", "b", "a", "b", "b", "b"]
    permuted = teachers(
        run,
        model,
        torch.tensor(SECRET),
        [DOCUMENTS[i] for i in order],
        bos=V,
        kinds=kinds,
        options=TeachersOptions(minimum=2),
    )
    torch.testing.assert_close(permuted.saved, taught.saved[order], rtol=0, atol=1e-12)
    assert permuted.passes.tolist() == taught.passes[order].tolist()
    assert permuted.kind_names == ("a", "b")
    alone = permuted.excess.isnan().tolist()  # the other document of its kind is a copy of the sentence
    assert alone == [False, False, True, False, False, False]
    assert permuted.revealed is None


def test_influence_is_that_of_the_run(recorded):
    model, run = recorded
    found = teachers(run, model, SECRET, DOCUMENTS, bos=V, options=TeachersOptions(method="influence"))
    rows = document_batch([SECRET], bos=V)
    expected = km.influence(
        run, model, rows, loss=output, forward=document_loss, options=km.InfluenceOptions(replays=0)
    )
    torch.testing.assert_close(found.contribution, -expected.influence[0, :, 0] / math.log(2), rtol=0, atol=1e-10)
    assert found.change is None
    assert found.contribution[UNUSED] == 0


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_tangents_are_products_of_gradients(dtype, eps):
    model = Recurrent().to(dtype)
    context = [2, 7]
    found = tangent_teachers(model, SECRET, DOCUMENTS, options=TeachersOptions(context=context))

    def gradient(documents, targets=None):
        loss = document_loss(model, document_batch(documents, targets=targets)).sum()
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))]).double()

    masks = [[t == 2 + i for t in range(7)] for i in range(5)]
    token = torch.stack([gradient([context + SECRET], [mask]) for mask in masks])
    document = torch.stack([gradient([ids]) for ids in DOCUMENTS])
    expected = document @ token.T / math.log(2)
    torch.testing.assert_close(found.saved, expected, rtol=0, atol=eps * float(expected.abs().max()))
    assert found.positions.tolist() == [0, 1, 2, 3, 4]
    assert (found.passes, found.change) == (None, None)


def test_one_step_on_a_document_saves_what_its_tangents_predict():
    model, rate = Recurrent().double(), 1e-6
    predicted = tangent_teachers(model, SECRET, DOCUMENTS, bos=V).contribution
    rows = document_batch([SECRET], bos=V)
    before = float(document_loss(model, rows).detach())
    document_loss(model, document_batch([DOCUMENTS[3]], bos=V)).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= rate * parameter.grad
    saved = (before - float(document_loss(model, rows).detach())) / math.log(2) / rate
    assert saved == pytest.approx(float(predicted[3]), rel=1e-3)


def test_the_result_survives_its_file_and_holds_text_only_if_revealed(taught, tmp_path):
    loaded = Teachers.load(taught.save(tmp_path / "teachers.km"))
    assert str(loaded) == str(taught)
    assert loaded.to_frame().equals(taught.to_frame())
    assert loaded.to_html() == taught.to_html()
    assert loaded.to_frame()["document"].tolist()[0] == taught.top(1)[0][0]
    assert loaded.revealed.sentence == tuple("dbebf")


def test_html_shows_tokens_escaped_and_redacted_without_decode(recorded):
    names = ["<", "&", "\u202e", "\n", "a", "b", "c", "d", "e", "f", "g"]
    model = Recurrent().double()

    def decode(ids):
        return "".join(names[i] for i in ids)

    revealed = tangent_teachers(model, [0, 1, 2, 3], DOCUMENTS, decode=decode).to_html()
    for shown in ("&lt;", "&amp;", "U+202E", "U+000A"):
        assert shown in revealed
    for hidden in ("<script", "\u202e", ">\n<", "href"):
        assert hidden not in revealed
    redacted = tangent_teachers(model, SECRET, DOCUMENTS, options=TeachersOptions(minimum=2))
    assert "redacted" in redacted.to_html()
    assert "<u>" not in redacted.to_html()
    assert redacted._repr_html_() == redacted.to_html()
    shared = tangent_teachers(model, SECRET, DOCUMENTS, decode=decode, options=TeachersOptions(minimum=5)).to_html()
    assert shared.count("<u>") == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"documents": DOCUMENTS[:5]}, "used example 5"),
        ({"documents": [*DOCUMENTS[:3], SECRET, *DOCUMENTS[4:]]}, r"documents\[3\]"),
        ({"bos": None}, "differs from the row"),
        ({"sentence": []}, "sentence of 0 tokens"),
        ({"sentence": "text"}, "token ids"),
        ({"kinds": ["a"]}, "kinds"),
        ({"kinds": [1.5] * 6}, "kinds"),
        ({"kinds": torch.eye(6)}, "kinds"),
        ({"own": [6]}, "own"),
        ({"decode": "no"}, "decode"),
        ({"decode": lambda ids: ids}, "decode, which returned list"),
        ({"decode": lambda ids: {}[0]}, "decode, which raised KeyError"),
        ({"options": None}, "options"),
        ({"run": None}, "run"),
    ],
)
def test_other_arguments_are_refused(recorded, change, message):
    model, run = recorded
    arguments = {"run": run, "model": model, "sentence": SECRET[:2], "documents": DOCUMENTS, "bos": V}
    with pytest.raises(InputError, match=message):
        teachers(**(arguments | change))
