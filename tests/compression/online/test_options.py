"""Options of online codes."""

import pytest
import torch

import kernelmem as km
from kernelmem.compression import OnlineOptions


def test_grids_are_lists_arrays_or_tensors():
    assert OnlineOptions(ridges=torch.tensor([0.5, 1.0])) == OnlineOptions(ridges=[0.5, 1])  # pyright: ignore


@pytest.mark.parametrize(
    "arguments",
    [
        {"ridges": []}, {"ridges": [0.1, 0.1]}, {"ridges": 0.1}, {"ridges": [0.0]}, {"ridges": range(1, 99)},
        {"temperatures": [-1.0]}, {"temperatures": [[1.0]]}, {"floors": [0.0]}, {"floors": [1.0]}, {"floors": None},
        {"uniform": 0}, {"uniform": 1}, {"first_block": 0}, {"growth": 1.0}, {"ridges": [float("nan")]},
    ],
    ids=str,
)  # fmt: skip
def test_options_out_of_range_are_refused(arguments):
    with pytest.raises(km.InputError):
        OnlineOptions(**arguments)
