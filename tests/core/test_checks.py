"""Laws of the border: what is not finite is found, what is symmetric up to rounding is made so."""

import numpy as np
import pytest
import torch

from kernelmem.core.checks import as_count, as_number, as_square_kernel, as_tensor, seed_sequence
from kernelmem.core.errors import InputError, NumericalError


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex64])
@pytest.mark.parametrize("bad", [[0.0, float("inf")], [float("-inf"), 0.0], [float("nan"), 0.0]])
def test_one_value_that_is_not_finite_is_enough(bad, dtype):
    with pytest.raises(InputError, match="1 NaN or infinite"):
        as_tensor(torch.tensor(bad).to(dtype), "x", allow_complex=True)


def test_numbers_and_nothing_pass():
    for values in ([], [0.0], [-1e308, 1e308]):
        assert as_tensor(torch.tensor(values, dtype=torch.float64), "x").tolist() == values


def test_rounding_is_averaged_away_and_what_is_symmetric_is_not_copied():
    K = torch.eye(5, dtype=torch.float64)
    assert as_square_kernel(K).data_ptr() == K.data_ptr()
    K[0, 1] = 1e-9
    mean = as_square_kernel(K)
    assert torch.equal(mean, (K + K.T) / 2)
    assert K[1, 0] == 0
    K[0, 1] = 1e-3
    with pytest.raises(NumericalError, match=r"asymmetry 0\.001"):
        as_square_kernel(K)


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.array(2), torch.tensor(2.0)])
def test_numbers_of_every_library_are_read(value):
    number = as_number(value, "ridge")
    assert number == 2.0
    assert type(number) is float


@pytest.mark.parametrize("value", [True, "2", None, float("nan"), float("inf"), -0.1, 5.1, torch.ones(2), 1j])
def test_what_is_not_a_number_in_range_is_refused(value):
    with pytest.raises(InputError, match="ridge="):
        as_number(value, "ridge", maximum=5.0)


def test_an_exclusive_minimum_is_out_of_range():
    assert as_number(0, "lr") == 0.0
    with pytest.raises(InputError, match="> 0"):
        as_number(0, "lr", exclusive=True)
    assert as_number(-1e9, "shift", minimum=-float("inf")) == -1e9


@pytest.mark.parametrize("value", [3, np.int64(3), torch.tensor(3)])
def test_whole_numbers_are_read(value):
    count = as_count(value, "n")
    assert count == 3
    assert type(count) is int


@pytest.mark.parametrize("value", [True, 3.0, "3", None, 0, 11, -1])
def test_what_is_not_a_whole_number_in_range_is_refused(value):
    with pytest.raises(InputError, match=r"n=.*in 1\.\.10"):
        as_count(value, "n", maximum=10)


@pytest.mark.parametrize("seed", [-1, True, 1.5, "0", None])
def test_seeds_are_whole_numbers(seed):
    with pytest.raises(InputError, match="seed="):
        seed_sequence(seed, ["a"])
