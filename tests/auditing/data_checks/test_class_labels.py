"""Class labels as people have them: every reading gives the same indices, ambiguous ones are refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.auditing.data_checks import read_class_labels
from kernelmem.core.errors import InputError
from tests.profiles import examples

NAMES = ["ant", "bee", "cat", "dog"]


@examples(0.5)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.permutations(NAMES), st.booleans())
def test_text_numbers_and_columns_are_the_same_labels(y, names, column):
    y = np.array([*y, 0, 3])  # the largest class occurs, so that counting from 1 is seen
    for labels in (y, y + 1, y.astype(float), torch.from_numpy(y), np.array(names, dtype=object)[y]):
        is_text = not isinstance(labels, torch.Tensor) and labels.dtype == object
        from_one = not is_text and int(labels.min()) == 1
        labels = labels.reshape(-1, 1) if column else labels
        result = read_class_labels(labels, labels, names if is_text else None).for_outputs(4)
        assert result.y_train.tolist() == result.y_test.tolist() == y.tolist()
        assert result.names == tuple(names if is_text else (str(k + from_one) for k in range(4)))


def test_text_without_names_is_in_alphabetical_order_and_missing_numbers_are_allowed():
    result = read_class_labels(["dog", "ant", "dog"], ["bee"]).for_outputs(3)
    assert result.names == ("ant", "bee", "dog")
    assert result.y_train.tolist() == [2, 0, 2]
    assert "alphabetical" in result.note
    assert read_class_labels([1, 2, 1], [2]).for_outputs(4).y_train.tolist() == [1, 2, 1]
    assert read_class_labels([-1, 1], [1]).for_outputs(2).y_train.tolist() == [0, 1]
    assert read_class_labels([0, 2], [2]).for_outputs(3).note == ""


@pytest.mark.parametrize(
    ("y", "names", "outputs", "words"),
    [
        (["ant", "bee"], None, 3, "2 different texts"),
        (["ant", "eel"], NAMES, 4, "not among the class names"),
        (["ant", "bee"], ["ant", "bee"], 3, "2 entries for a model with 3"),
        ([0, 1], ["ant", "ant"], 2, "1 of them different"),
        ([-1, 0, 1], None, 3, "outside 0"),
        ([0.5, 1], None, 2, "fractions"),
        ([None, "ant"], None, 2, "y_train"),
        ([[0, 1], [1, 0]], None, 2, "argmax"),
    ],
)
def test_labels_that_are_none_of_these_are_refused(y, names, outputs, words):
    with pytest.raises(InputError, match=words):
        read_class_labels(y, y, names).for_outputs(outputs)
