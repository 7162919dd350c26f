"""Rows read from Datasets and DataLoaders: all examples in their order, or a refusal; nothing else changes."""

import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    StackDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from kernelmem.core.batches import as_labeled_rows, as_rows, check_outputs
from kernelmem.core.errors import InputError, UnsupportedModelError
from tests.profiles import examples

N = 7
X, Y = torch.arange(2.0 * N).reshape(N, 2), torch.arange(N) % 3
DATA = TensorDataset(X, Y)


class Reversed(SequentialSampler):
    def __iter__(self):
        return iter(range(N - 1, -1, -1))


class Batches:
    """A batch sampler of another kind."""

    def __iter__(self):
        return iter([[2, 1], [0]])

    def __len__(self):
        return 2


class Stream(IterableDataset):
    def __iter__(self):
        return iter(DATA)


class Augmented(Dataset):
    """Draws from the global random state."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return X[i] + 0.1 * torch.rand(2), Y[i]


LOADERS = {
    "plain": lambda size: DataLoader(DATA, batch_size=size),
    "drop_last": lambda size: DataLoader(DATA, batch_size=size, drop_last=True),
    "shuffle": lambda size: DataLoader(DATA, batch_size=size, shuffle=True),
    "random": lambda size: DataLoader(DATA, batch_size=size, sampler=RandomSampler(DATA)),
    "subset sampler": lambda size: DataLoader(DATA, batch_size=size, sampler=SubsetRandomSampler(range(N))),
    "weighted": lambda size: DataLoader(DATA, batch_size=size, sampler=WeightedRandomSampler([1.0] * N, N)),
    "reversed": lambda size: DataLoader(DATA, batch_size=size, sampler=Reversed(DATA)),
    "fewer": lambda size: DataLoader(DATA, batch_size=size, sampler=SequentialSampler(range(N - 2))),
    "list": lambda size: DataLoader(DATA, batch_size=size, sampler=list(range(N))),
    "reversed list": lambda size: DataLoader(DATA, batch_size=size, sampler=list(range(N))[::-1]),
    "batch sampler": lambda size: DataLoader(DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), size, False)),
    "dropping batch sampler": lambda size: DataLoader(
        DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), size, True)
    ),
    "random batch sampler": lambda size: DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), size, False)),
    "other batch sampler": lambda size: DataLoader(DATA, batch_sampler=Batches()),
    "stream": lambda size: DataLoader(Stream(), batch_size=size),
    "workers": lambda size: DataLoader(DATA, batch_size=size, num_workers=2, persistent_workers=True),
}
ALWAYS_ORDERED = {"plain", "list", "batch sampler", "workers"}


@given(st.sampled_from(sorted(LOADERS)), st.integers(1, N + 2))
@examples(3)
def test_all_rows_in_their_order_or_a_refusal(kind, size):
    loader = LOADERS[kind](size)
    ordered = kind in ALWAYS_ORDERED or (kind in ("drop_last", "dropping batch sampler") and N % size == 0)
    if ordered:
        assert torch.equal(as_rows(loader).tree, X)
        inputs, labels = as_labeled_rows(loader, "train")
        assert torch.equal(torch.as_tensor(inputs), X)
        assert torch.equal(torch.as_tensor(labels), Y)
    else:
        for read in (as_rows, lambda x: as_labeled_rows(x, "train")):
            with pytest.raises(InputError, match=r"order|drops the last"):
                read(loader)


@pytest.mark.parametrize(
    "data", [Augmented(), DataLoader(Augmented(), batch_size=2), DataLoader(DATA, generator=torch.Generator())]
)
def test_reading_changes_no_random_state(data):
    state = torch.random.get_rng_state()
    generator = getattr(data, "generator", None)
    before = None if generator is None else generator.get_state()
    as_rows(data)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert generator is None or torch.equal(generator.get_state(), before)


def test_examples_that_are_dicts_subsets_or_batches():
    ids = torch.arange(N)
    dicts = StackDataset(input_ids=ids, labels=Y)
    assert as_rows(dicts).tree.keys() == {"input_ids", "labels"}
    for data in (dicts, DataLoader(dicts, batch_size=3)):
        inputs, labels = as_labeled_rows(data, "train")
        assert list(inputs) == ["input_ids"]
        assert torch.equal(inputs["input_ids"], ids)
        assert torch.equal(labels, Y)
    assert torch.equal(as_rows(Subset(DATA, [4, 1])).tree, X[[4, 1]])
    ready = [(X[:4], Y[:4]), (X[4:], Y[4:])]
    assert torch.equal(as_rows(DataLoader(ready, batch_size=None)).tree, X)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Stream(), "order is unknown"),
        (TensorDataset(X[:0]), "empty"),
        (Subset(DATA, []), "empty"),
        (StackDataset([torch.zeros(2), torch.zeros(3)]), "joined"),
        (DataLoader(StackDataset([torch.zeros(2), torch.zeros(3)]), batch_size=1), "joined"),
        (StackDataset(["a", "b"]), "joined"),
        (StackDataset([object(), object()]), "joined"),
    ],
)
def test_what_cannot_be_read_is_refused(data, words):
    with pytest.raises(InputError, match=words):
        as_rows(data, "x")


def test_labels_that_are_not_there():
    for data in (TensorDataset(X), StackDataset(ids=torch.arange(N)), X, {"x": X}):
        with pytest.raises(InputError, match="train"):
            as_labeled_rows(data, "train")


def test_rows_are_sliced_like_arrays():
    rows = as_rows({"a": X, "b": (Y,)})
    assert len(rows) == N
    assert rows.shape == (N,)
    part = rows[2:100]
    assert (len(part), part.tree["b"][0].tolist()) == (N - 2, Y[2:].tolist())
    assert len(rows[5:2]) == 0


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({"logits": torch.zeros(2, 3)}, r"dict with the keys 'logits'.*model\(x\)\['logits'\]"),
        ({"a": 1, "b": 2}, r"model\(x\)\['a'\]"),
        ({}, "is a dict"),
        (types.SimpleNamespace(logits=torch.zeros(2, 3)), r"SimpleNamespace.*forward=km\.logits"),
        ((torch.zeros(2, 3), (torch.zeros(1, 2, 3),)), r"tuple of \(2, 3\), tuple; .*model\(x\)\[0\]"),
        ((torch.zeros(2, 5, 3), torch.zeros(1)), r"model\(x\)\[0\]\[:, -1\]"),
        ((), r"is a tuple"),
        (torch.zeros(2), r"shape \(2,\).*\[:, None\]"),
        (torch.zeros(2, 3, 4), r"flatten\(1\)"),
        (torch.zeros(3, 3), r"shape \(3, 3\); expected a tensor of shape \(2, C\)"),
        (torch.zeros(2, 0), r"shape \(2, 0\)"),
        (torch.zeros(()), r"shape \(\)"),
        (None, "is None"),
        (torch.zeros(2, 3, dtype=torch.int64), "dtype int64.*before argmax"),
        (torch.zeros(2, 3, dtype=torch.complex64), "dtype complex64.*view_as_real"),
    ],
)
def test_outputs_of_another_form_are_refused_with_the_forward_that_repairs_them(outputs, words):
    with pytest.raises(UnsupportedModelError, match=words):
        check_outputs(outputs, 2)
