"""kernelmem.recording.storage.inputs and npy: each input is stored once, as plain .npy bytes."""

import io

import numpy as np
import pytest
import torch

from kernelmem.core.errors import InputError
from kernelmem.recording.storage.inputs import InputRegistry, read_batch
from kernelmem.recording.storage.npy import array_bytes, array_from_bytes, row_bytes, rows_from_bytes


def test_rows_of_arrays_are_the_npy_bytes_of_each():
    for array in [
        np.random.default_rng(0).normal(size=(5, 2, 3)),
        np.arange(4),
        np.zeros((3, 0)),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.array([True, False]),
    ]:
        rows = row_bytes(array)
        assert rows == [array_bytes(row) for row in array]
        back = rows_from_bytes(rows)
        assert back.dtype == array.dtype
        assert np.array_equal(back, array)
        assert np.load(io.BytesIO(rows[0]), allow_pickle=False).shape == array.shape[1:]
    with pytest.raises(ValueError, match="different shapes"):
        rows_from_bytes([array_bytes(np.zeros(2)), array_bytes(np.zeros(3))])


def test_nothing_is_unpickled():
    stream = io.BytesIO()
    np.save(stream, np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="dtype object"):
        array_from_bytes(stream.getvalue())


def test_an_input_is_stored_once_and_a_different_one_is_a_new_version():
    inputs = InputRegistry()
    x, y = torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 0])

    def placed(index, x, y):
        versions, new = inputs.versions(read_batch(index, x, y, None))
        inputs.add(new)
        return versions.tolist(), [(stored.example, stored.version) for stored in new]

    assert placed([4, 5, 4], x, y) == ([0, 0, 1], [(4, 0), (5, 0), (4, 1)])
    assert placed([4, 5, 4], x, y) == ([0, 0, 1], [])
    assert placed([4, 4], x[[0, 0]], y[[0, 0]]) == ([0, 0], [])
    assert placed([5, 5], x[[0, 0]], y[[0, 0]]) == ([1, 1], [(5, 1)])
    assert placed([5], x[1:2].double(), y[1:2]) == ([2], [(5, 2)])  # another dtype is another input
    assert placed([5], x[1:2], y[:1]) == ([3], [(5, 3)])  # and so is another label
    again = InputRegistry([(4, 0, inputs.versions(read_batch([9], x[:1], y[:1], None))[1][0].sha256)])
    assert again.versions(read_batch([4], x[:1], y[:1], None))[0].tolist() == [0]


@pytest.mark.parametrize(
    ("index", "x", "y", "weight", "words"),
    [
        ([0], torch.zeros(2, 3), torch.zeros(2), None, "2 rows of x, 2 rows of y, 1 rows of index"),
        ([0, 1], torch.zeros(2, 3), torch.zeros(2), torch.ones(3), "3 rows of sample_weight"),
        ([], torch.zeros(0, 3), torch.zeros(0), None, "at least one"),
        ([0, -1], torch.zeros(2, 3), torch.zeros(2), None, "minimum -1"),
        ([0.0, 1.0], torch.zeros(2, 3), torch.zeros(2), None, "index of shape .* dtype torch.float64"),
        ([True, False], torch.zeros(2, 3), torch.zeros(2), None, "torch.bool"),
        ([0, 1], torch.full((2, 3), float("nan")), torch.zeros(2), None, "NaN"),
        ([0, 1], torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(2), None, "x of dtype bfloat16"),
        ([0, 1], torch.zeros(2, 3), torch.zeros(2), torch.ones(2, 1), r"sample_weight of shape \(2, 1\)"),
        ([0, 1], {"ids": 3}, torch.zeros(2), None, "0 rows of x.ids, 2 rows of y"),
        ([0, 1], {"ids": {1: torch.zeros(2)}, "ids.1": "two"}, torch.zeros(2), None, "x.ids.1 of type str"),
        (
            [0, 1],
            {"a": torch.zeros(2), "b": (torch.zeros(2), [torch.zeros(3)])},
            torch.zeros(2),
            None,
            r"3 rows of x.b\[1\]\[0\]",
        ),
        ([0, 1], {"a": torch.full((2,), float("inf"))}, torch.zeros(2), None, r"x.a of shape \(2,\) with 2 NaN"),
        ([0, 1], (), torch.zeros(2), None, "x without a tensor"),
    ],
)
def test_an_inconsistent_batch_is_refused(index, x, y, weight, words):
    with pytest.raises(InputError, match=words):
        read_batch(index, x, y, weight)
