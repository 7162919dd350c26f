"""Class labels as users have them: what is read, what is refused, and hints that lead to labels that are read."""

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core.checks import as_labels
from kernelmem.core.errors import InputError
from tests.profiles import examples

CLASSES = st.lists(st.integers(0, 4), min_size=3, max_size=12).filter(lambda y: {0, 1} <= set(y))


@given(CLASSES)
@examples(0.5)
def test_every_form_of_the_same_labels_is_read(y):
    forms = [
        y,
        np.array(y, np.uint8),
        np.array(y, np.float64),
        np.array(y)[:, None],
        torch.tensor(y, dtype=torch.bfloat16),
        torch.tensor(y)[:, None],
        pandas.Series(y, index=range(5, 5 + len(y))),
        pandas.Series(y, dtype="Int64"),
        pandas.DataFrame({"label": y}),
        pandas.Categorical(y),
    ]
    for form in forms:
        labels = as_labels(form, "y", n=len(y), n_classes=5)
        assert labels.dtype == torch.int64
        assert labels.tolist() == y


def follow(hint, y):
    """Do what the hint says: its expression, evaluated with y and numpy."""
    names = {"y": y, "numpy": np}
    expression = hint.removeprefix("pass ").split(": ")[-1].split(", the ")[0]
    if "keep the rows" in hint:
        return y[eval(expression.removeprefix("keep the rows with "), names)]
    return eval(expression, names)


@given(
    CLASSES,
    st.sampled_from(
        ["from one", "gaps", "negative", "text", "halves", "-1 and 1", "one-hot", "probable", "-100", "row"]
    ),
)
@examples(2)
def test_the_hint_of_a_refusal_gives_labels_of_the_same_classes(y, kind):
    y = np.unique(y, return_inverse=True)[1]
    n_classes = int(y.max()) + 1
    altered = {
        "from one": y + 1,
        "gaps": 3 * y + 10,
        "negative": y - 3,
        "text": np.array([f"class {label}" for label in y]),
        "halves": np.concatenate([y, y]) / 2 + 0.25,
        "-1 and 1": 2 * (y % 2) - 1,
        "one-hot": np.eye(n_classes)[y],
        "probable": (np.eye(n_classes)[y] + 0.25 / n_classes) / 1.25,
        "-100": np.concatenate([y, [-100]]),
        "row": y[None],
    }[kind]
    expected = {"-1 and 1": y % 2, "halves": np.concatenate([y, y])}.get(kind, y)
    with pytest.raises(InputError) as refusal:
        as_labels(altered, "y", n_classes=n_classes)
    labels = as_labels(follow(refusal.value.hint, altered), "y", n_classes=n_classes)
    assert labels.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("y", "words"),
    [
        ([[1, 1, 0], [0, 1, 1]], "one class index per row"),
        (np.array(["a", None], object), "without a label"),
        (np.array(["a", float("nan")], object), "without a label"),
        ([0.11, 0.72, 1.93], "real targets"),
        ([0, 1, 2, 3], "4 outputs"),
        ([1e300, 0.0], "outside"),
        ([0, 2**63], "outside"),
        ([1j, 0], "real numbers"),
        (3, "one class index"),
        ([[1, 2], [3]], "numbers"),
    ],
)
def test_what_is_no_label_is_refused(y, words):
    with pytest.raises(InputError, match=words):
        as_labels(y, "y", n_classes=3)
