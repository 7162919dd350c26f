"""Laws of the border: what is not finite is found, what is symmetric up to rounding is made so."""

import pytest
import torch

from kernelmem.core.checks import as_square_kernel, as_tensor
from kernelmem.core.errors import InputError, NumericalError


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex64])
@pytest.mark.parametrize("bad", [[0.0, float("inf")], [float("-inf"), 0.0], [float("nan"), 0.0]])
def test_one_value_that_is_not_finite_is_enough(bad, dtype):
    with pytest.raises(InputError, match="1 NaN or infinite"):
        as_tensor(torch.tensor(bad).to(dtype), "x")


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
