"""kernelmem.text.documents: every form of token ids gives the same documents; anything else is refused by name."""

from collections import UserDict

import numpy as np
import pytest
import torch

from kernelmem import InputError
from kernelmem.text import Documents, as_documents

ROWS = [[5, 2, 7, 0], [0, 0], [3]]
PADDED = torch.tensor([[5, 2, 7, 0], [0, 0, 9, 9], [3, 9, 9, 9]])
MASK = [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize(
    "value",
    [
        ROWS,
        tuple(map(tuple, ROWS)),
        iter(ROWS),
        [np.array(row, dtype=np.uint16) for row in ROWS],
        np.array([np.array(row) for row in ROWS], dtype=object),
        [torch.tensor(row, dtype=torch.int32) for row in ROWS],
        {"input_ids": ROWS},
        {"input_ids": PADDED, "attention_mask": MASK},
        UserDict({"input_ids": PADDED.tolist(), "attention_mask": torch.tensor(MASK)}),
        {"input_ids": PADDED.flip(1), "attention_mask": torch.tensor(MASK).flip(1)},
        as_documents(ROWS),
    ],
)
def test_forms_of_documents(value):
    expected = ROWS if not isinstance(value, dict) or value["input_ids"] is ROWS else None
    documents = as_documents(value)
    assert all(ids.dtype == torch.int64 for ids in documents)
    if expected is None and isinstance(value["input_ids"], torch.Tensor) and int(value["input_ids"][2, 0]) == 9:
        expected = [row[::-1] for row in ROWS]  # padded on the left
    assert [ids.tolist() for ids in documents] == (expected or ROWS)


def test_lengths_cut_padding_whatever_its_id():
    assert [ids.tolist() for ids in as_documents(PADDED, lengths=[4, 2, 1])] == ROWS
    assert [len(ids) for ids in as_documents(PADDED.numpy(), lengths=np.array([0, 4, 2]))] == [0, 4, 2]
    assert as_documents(PADDED).lengths.tolist() == [4, 4, 4]


def test_documents_are_a_copy():
    ids = torch.tensor([[1, 2]])
    documents = as_documents([ids[0]])
    ids[0, 0] = 4
    assert documents[0].tolist() == [1, 2]


@pytest.mark.parametrize(
    "value",
    [
        "text",
        ["one text", "another"],
        [["to", "kens"]],
        [1, 2, 3],
        torch.tensor([1, 2, 3]),
        torch.zeros(1, 2, 3, dtype=torch.int64),
        torch.zeros(0, 3, dtype=torch.int64),
        [],
        None,
        [[1, -100]],
        [[0.5, 1.0]],
        [[True, False]],
        {"ids": ROWS},
        {},
        {"input_ids": PADDED, "attention_mask": [[1, 0, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]},
        {"input_ids": PADDED, "attention_mask": MASK[:2]},
        {"input_ids": ROWS, "attention_mask": MASK},
        {"input_ids": PADDED, "attention_mask": (2 * torch.tensor(MASK))},
        Documents(()),
        Documents((torch.tensor([-1]),)),
    ],
)
def test_other_values_are_refused(value):
    with pytest.raises(InputError, match="documents"):
        as_documents(value)


@pytest.mark.parametrize("lengths", [[4, 2], [4, 2, 5], [4, 2, -1], [1.0, 2.0, 3.0], "4", [[4, 2, 1]]])
def test_lengths_that_do_not_fit_are_refused(lengths):
    with pytest.raises(InputError, match="lengths"):
        as_documents(PADDED, lengths=lengths)


def test_lengths_of_what_has_lengths_are_refused():
    with pytest.raises(InputError, match="lengths"):
        as_documents(as_documents(ROWS), lengths=[1, 1, 1])
    with pytest.raises(InputError, match="lengths"):
        as_documents({"input_ids": PADDED, "attention_mask": MASK}, lengths=[1, 1, 1])


@pytest.mark.parametrize("value", ["a private text", ["a private text"], [["a private text"]]])
def test_errors_do_not_quote_text(value):
    with pytest.raises(InputError, match="tokenize") as raised:
        as_documents(value)
    assert "private" not in str(raised.value)
