"""Coverage of canaries: complete data in every form, and an error that names the canary for whatever is lost."""

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pad_sequence

import kernelmem as km
from kernelmem.text import TextCoverage
from kernelmem.text.canary import canaries, coverage
from kernelmem.text.canary.training_rows import rows_of_batch
from tests.profiles import examples
from tests.text.canary.tables import CHARACTERS, encode

DOCUMENTS = ["the key of unit is here, key of unit, and here", "one two three four five six seven eight", "nine ten"]
DESIGN = canaries(5, encode, length=4, tiers=(1, 3))
ROWS = DESIGN.insert(DOCUMENTS, encode, context=12)
IDS = [row.tolist() for row in ROWS.ids]
COPY = next(i for i, k in enumerate(ROWS.owner.tolist()) if k == 2)  # a row with a copy of the canary of pair 2
NAME = rf"canary {int(DESIGN.inserted[2])} of pair 2 \(code {DESIGN.codes[2][int(DESIGN.inserted[2])]}\)"
PLANNED = (DESIGN.repetitions[:, None] * torch.nn.functional.one_hot(DESIGN.inserted, 2)).tolist()


def padded(rows, value=0, *, left=False):
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value,
                        padding_side="left" if left else "right")  # fmt: skip


def hugging_face(rows, *, left=False):
    """Ids are padded by the id 0, which is a character too; the mask tells them apart."""
    mask = padded([[1] * len(row) for row in rows], left=left)
    return {"input_ids": padded(rows, left=left), "attention_mask": mask, "labels": padded(rows, -100, left=left)}


def shifted(rows, *, ignored=-100, weights=False):
    x, y = padded([row[:-1] for row in rows]), padded([row[1:] for row in rows], ignored)
    return (x, y, (y != ignored).float()) if weights else (x, y)


FORMS = {
    "rows": lambda rows: rows,
    "tensors": lambda rows: [torch.tensor(row) for row in rows],
    "batches of rows": lambda rows: [rows[:3], rows[3:]],
    "hugging face": lambda rows: [hugging_face(rows[:4]), hugging_face(rows[4:])],
    "padded on the left": lambda rows: [hugging_face(rows, left=True)],
    "next tokens": lambda rows: [shifted(rows[:5]), shifted(rows[5:])],
    "weights": lambda rows: [shifted(rows, weights=True)],
    "arrays": lambda rows: (padded([row]).numpy() for row in rows),
    "packed": lambda rows: [list(chain.from_iterable(rows))],
}


@pytest.mark.parametrize("form", FORMS)
def test_complete_data_are_covered(form):
    found = coverage(DESIGN, FORMS[form](IDS))
    assert found.copies.tolist() == found.passes.tolist() == PLANNED
    assert found.together == (3 if form == "packed" else 1)
    assert "no twin" in str(found)
    assert ("in one row" in str(found)) == (form == "packed")


@pytest.mark.parametrize("form", FORMS)
@examples(0.2)
@given(st.integers(0, len(IDS) - 1))
def test_a_lost_row_is_named(form, row):
    rows = IDS[:row] + IDS[row + 1 :]
    if int(ROWS.owner[row]) < 0:
        coverage(DESIGN, FORMS[form](rows))
        return
    pair = int(ROWS.owner[row])
    copies = int(DESIGN.repetitions[pair])
    with pytest.raises(km.InputError, match=rf"of pair {pair} .*: {copies - 1} of {copies} copies"):
        coverage(DESIGN, FORMS[form](rows))


@pytest.mark.parametrize("form", FORMS)
def test_a_truncated_copy_is_named(form):
    rows = [row[:-1] if i == COPY else row for i, row in enumerate(IDS)]
    with pytest.raises(km.InputError, match=NAME + ".*cut off"):
        coverage(DESIGN, FORMS[form](rows))


@pytest.mark.parametrize("place", range(1, len(DESIGN.ids(2, 0)) + 1))
def test_a_copy_that_packing_splits_is_named(place):
    """Blocks that end inside of a canary: nothing is found in the second block, nor before the head is complete."""
    head, tail = IDS[COPY][:-place], IDS[COPY][-place:]
    rows = [*IDS[:COPY], head, tail, *IDS[COPY + 1 :]]
    if place == len(DESIGN.ids(2, 0)):
        coverage(DESIGN, rows)  # split before the canary
        return
    with pytest.raises(km.InputError, match=NAME):
        coverage(DESIGN, rows)


@pytest.mark.parametrize("place", [1, 2, 3, 4, 5])
def test_a_token_without_loss_is_named(place):
    batch = hugging_face([*IDS[:COPY], *IDS[COPY + 1 :], IDS[COPY]])
    end = len(IDS[COPY])
    batch["labels"][-1, end - place] = -100
    x, y, weights = shifted(IDS, weights=True)
    weights[COPY, end - 1 - place] = 0
    for batches in ([batch], [(x, y, weights)]):
        if place == 5:  # a token of the head
            coverage(DESIGN, batches)
        else:
            with pytest.raises(km.InputError, match=NAME + ".*1 copies with tokens of the secret that are no targets"):
                coverage(DESIGN, batches)


def test_rows_of_weight_0_have_no_loss():
    x, y = shifted(IDS)
    weights = torch.ones(len(IDS))
    assert coverage(DESIGN, [(x, y, weights)]).copies.tolist() == PLANNED
    weights[COPY] = 0
    with pytest.raises(km.InputError, match=NAME):
        coverage(DESIGN, [(x, y, weights)])


def test_twins_and_too_many_copies_are_named():
    twin = DESIGN.ids(2, 1 - int(DESIGN.inserted[2])).tolist()
    with pytest.raises(km.InputError, match=rf"canary {1 - int(DESIGN.inserted[2])} of pair 2 .* twin .*1 times"):
        coverage(DESIGN, [*IDS, twin])
    with pytest.raises(km.InputError, match=NAME + ".*copies, not"):
        coverage(DESIGN, [*IDS, IDS[COPY]])
    with pytest.raises(km.InputError, match="copies, not"):
        coverage(DESIGN, IDS * 2)
    assert coverage(DESIGN, IDS * 2, epochs=2).copies.tolist() == [[2 * k for k in pair] for pair in PLANNED]


def test_deduplication_is_seen():
    """Copies without different text before them are equal rows."""
    rows = [row.tolist() for row in DESIGN.insert(DOCUMENTS, encode, context=0).ids]
    with pytest.raises(km.InputError, match="1 of 3 copies"):
        coverage(DESIGN, list(dict.fromkeys(map(tuple, rows))))
    coverage(DESIGN, list(dict.fromkeys(map(tuple, IDS))))


def test_the_share_is_that_of_the_targets():
    copies = sum(map(sum, PLANNED))
    found = coverage(DESIGN, IDS)
    assert found.share == copies * len(DESIGN.ids(0, 0)) / sum(map(len, IDS)) == ROWS.canary_share
    assert coverage(DESIGN, ROWS).share == found.share


def test_another_ignored_label():
    x, y = shifted(IDS, ignored=-1)
    assert coverage(DESIGN, [(x, y)], ignored=-1).copies.tolist() == PLANNED
    with pytest.raises(km.InputError, match="neither its ids nor the next ids"):
        coverage(DESIGN, [(x, y)])


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(CHARACTERS), 4)
        self.head = nn.Linear(4, len(CHARACTERS))

    def forward(self, ids):
        return self.head(self.embedding(ids))


def logits(model, x):
    return model(x).flatten(1)


def mean_loss(outputs, y):
    per_token = outputs.reshape(len(y), -1, len(CHARACTERS)).transpose(1, 2)
    return nn.functional.cross_entropy(per_token, y, reduction="none").mean(1)


def record(directory, batches, *, weights=None):
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = shifted(IDS)
    with km.Recorder(model, optimizer, directory, loss=mean_loss, forward=logits, keep=100) as recorder:
        for index in batches:
            optimizer.zero_grad()
            w = torch.ones(len(index)) if weights is None else weights[index]
            (mean_loss(logits(model, x[index]), y[index]) * w).mean().backward()
            recorder.step(index, x[index], y[index], sample_weight=w)
    return km.Run.open(directory)


def test_a_recorded_run_is_covered_by_its_tape(tmp_path):
    order = torch.arange(len(IDS)).split(12)
    found = coverage(DESIGN, record(tmp_path / "all", [*order, *order]))
    assert found.copies.tolist() == PLANNED
    assert found.passes.tolist() == [[2 * k for k in pair] for pair in PLANNED]
    assert found.rows == 2 * len(IDS)
    assert "recorded run" in str(found)
    weights = torch.ones(len(IDS))
    weights[COPY] = 0
    with pytest.raises(km.InputError, match=NAME):
        coverage(DESIGN, record(tmp_path / "weight 0", order, weights=weights))


def test_rows_are_the_tokens_without_padding():
    for left in (False, True):
        rows = list(rows_of_batch(hugging_face(IDS, left=left), -100, "batch"))
        assert [ids.tolist() for ids, _ in rows] == IDS
    ((ids, is_target),) = rows_of_batch((torch.tensor([[5, 6]]), torch.tensor([[6, -100]])), -100, "batch")
    assert (ids.tolist(), is_target.tolist()) == ([5, 6], [False, True])  # what follows 6 is not known


def test_results_are_saved_and_tabulated(tmp_path):
    found = coverage(DESIGN, IDS)
    assert str(TextCoverage.load(found.save(tmp_path / "coverage"))) == str(found)
    assert found.to_frame()["copies"].tolist() == list(chain.from_iterable(PLANNED))


@pytest.mark.parametrize(
    "batches",
    ["text", torch.zeros(2, 2), [torch.zeros(2, 3)], [[-1, 2]], [{"ids": [1]}], [(torch.zeros(2, 3).long(), torch.zeros(2))],
     [(torch.zeros(2, 3).long(), torch.zeros(2, 3).long(), torch.zeros(3))], [torch.zeros(2, 2, 2).long()], 3, [None], ["a"]],
    ids=str,
)  # fmt: skip
def test_other_batches_are_refused(batches):
    with pytest.raises(km.InputError):
        coverage(DESIGN, batches)
