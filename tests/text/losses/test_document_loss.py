"""kernelmem.text.document_loss: the loss of documents seen by kernels, recorded runs, ledgers and influences."""

import math

import pytest
import torch

import kernelmem as km
from kernelmem import InputError
from kernelmem.text import causal_lm, document_batch, document_loss, token_losses
from tests.text.small_models import MODELS, Attention, Recurrent, Uniform, V, random_documents

DOCUMENTS = random_documents(3, 2, 4, 1)
BATCH = document_batch(DOCUMENTS, bos=V)


def own_loss(outputs, y):
    """The loss of a language model: the output itself."""
    return outputs[:, 0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("bos", [V, None])
def test_equals_the_sum_of_token_losses(name, bos):
    model = MODELS[name]().double().eval()
    documents, masks = random_documents(5, 0, 9, 1), [[True, False, True, True, True], [], [True] * 9, [True]]
    losses = token_losses(causal_lm(model, bos=bos), documents, targets=masks).per_document() * math.log(2)
    batch = document_batch(documents, bos=bos, targets=masks)
    torch.testing.assert_close(document_loss(model, batch)[:, 0].detach(), losses, rtol=0, atol=1e-11)
    del batch["attention_mask"]  # not needed: padding is on the right
    torch.testing.assert_close(document_loss(model, batch)[:, 0].detach(), losses, rtol=0, atol=1e-11)


def test_a_tensor_has_documents_of_equal_length():
    model, ids = Recurrent(), torch.stack(random_documents(4, 4))
    expected = document_loss(model, document_batch(ids))
    assert torch.equal(document_loss(model, ids), expected)
    assert document_loss(model, ids).requires_grad


def test_batches_are_padded_on_the_right():
    batch = document_batch([[5, 2], [7], []], bos=1, targets=[[False, True], [7, -100], []])
    assert batch["input_ids"].tolist() == [[1, 5, 2], [1, 7, 0], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 2], [-100, 7, -100], [-100, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert document_batch([[5, 2]])["labels"].tolist() == [[-100, 2]]


@pytest.mark.parametrize("make", [Recurrent, Attention])
def test_ntk(make):
    model = make().double()
    kernel = km.ntk(model, BATCH, forward=document_loss, outputs="trace")
    losses = document_loss(model, BATCH)[:, 0]
    gradients = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in losses]
    J = torch.stack([torch.cat([part.flatten() for part in row]) for row in gradients])
    torch.testing.assert_close(kernel, J @ J.T, rtol=0, atol=1e-12 * float((J @ J.T).abs().max()))


def recorded_run(model, directory, steps):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with km.Recorder(model, optimizer, directory, loss=own_loss, forward=document_loss) as recorder:
        for step in range(steps):
            index = torch.tensor([step % 4, (step + 1) % 4])
            batch = {name: rows[index] for name, rows in BATCH.items()}
            optimizer.zero_grad()
            document_loss(model, batch).mean().backward()
            recorder.step(index, batch, torch.zeros(2, dtype=torch.int64))
    return km.Run.open(directory)


@pytest.mark.parametrize("make", [Recurrent, pytest.param(lambda: Attention(size=4), marks=pytest.mark.soak)])
def test_recorder_ledger_and_influence(make, tmp_path):
    """The ledger explains the change of code length of each document by the training documents, to rounding."""
    model = make().double()
    before = document_loss(model, BATCH).detach()
    run = recorded_run(model, tmp_path / "run", steps=2)
    ledger = km.ledger(run, model, BATCH, loss=own_loss, forward=document_loss, progress=False)
    assert ledger.residual.abs().max() <= 1e-11
    change = document_loss(model, BATCH).detach() - before
    assert change.abs().max() > 1e-3
    torch.testing.assert_close(ledger.contributions.sum(1), change, rtol=0, atol=1e-11)
    options = km.InfluenceOptions(replays=0)
    influence = km.influence(run, model, BATCH, loss=own_loss, forward=document_loss, options=options, progress=False)
    assert influence.influence.shape == (4, 3, 1)  # 3 of the documents were trained on
    assert influence.influence.abs().max() > 1e-4
    assert influence.derivative_error is not None
    assert influence.derivative_error < 1e-5


def test_ledger_of_batches_of_different_lengths(tmp_path):
    """Batches are padded to their own longest document, and steps of equal size may have other lengths."""
    model = Recurrent().double()
    before = document_loss(model, BATCH).detach()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with km.Recorder(model, optimizer, tmp_path / "run", loss=own_loss, forward=document_loss) as recorder:
        for index in ([0, 1], [1, 3], [2, 0], [3, 0]):
            batch = document_batch([DOCUMENTS[i] for i in index], bos=V)
            optimizer.zero_grad()
            document_loss(model, batch).mean().backward()
            recorder.step(torch.tensor(index), batch, torch.zeros(2))
    run = km.Run.open(tmp_path / "run")
    ledger = km.ledger(run, model, BATCH, loss=own_loss, forward=document_loss, progress=False)
    change = document_loss(model, BATCH).detach() - before
    torch.testing.assert_close(ledger.contributions.sum(1), change, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(2, 3),
        torch.zeros(3, dtype=torch.int64),
        [[1, 2]],
        {"labels": torch.zeros(2, 3, dtype=torch.int64)},
        {"input_ids": torch.zeros(2, 3, dtype=torch.int64), "labels": torch.zeros(2, 4, dtype=torch.int64)},
        {"input_ids": torch.zeros(2, 3, dtype=torch.int64), "labels": torch.zeros(2, 3)},
        None,
    ],
)
def test_other_batches_are_refused(batch):
    with pytest.raises(InputError, match="document_batch"):
        document_loss(Uniform(), batch)


def test_other_documents_are_refused():
    for documents, options in (([[], []], {}), ([[1]], {"bos": -1}), ("text", {}), ([[1]], {"targets": [[2]]})):
        with pytest.raises(InputError):
            document_batch(documents, **options)
