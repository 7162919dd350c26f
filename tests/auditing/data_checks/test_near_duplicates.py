"""Groups of near-duplicates: copies are found, ordinary neighbors are not, and scales do not matter."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.auditing.data_checks import find_near_duplicates
from tests.profiles import examples


def kernel_of(x):
    return x @ x.T


@examples(0.5)
@given(st.integers(0, 10**6), st.integers(1, 12), st.floats(0.1, 10))
def test_copies_share_a_group_and_other_rows_do_not(seed, copies, scale):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 60, generator=generator, dtype=torch.float64)
    copied = scale * x[:copies] + 1e-4 * torch.randn(copies, 60, generator=generator, dtype=torch.float64)
    result = find_near_duplicates(kernel_of(torch.cat([x, copied])), 40, seed=seed)
    assert (result.group[:copies] == result.group[40:]).all()
    assert len(set(result.group.tolist())) == len(result.representative) == 40
    assert result.has_partner[40:, 0].all()
    assert result.has_partner[:copies, 1].all()
    assert not result.has_partner[copies:40].any()
    assert sorted(result.group[result.representative.numpy()].tolist()) == list(range(40))


def test_dense_data_of_low_dimension_are_not_one_group():
    x = torch.linspace(0, np.pi, 400, dtype=torch.float64)
    x = torch.stack([x.cos(), x.sin()], 1)
    assert len(find_near_duplicates(kernel_of(x), 200).representative) > 200
    assert len(find_near_duplicates(kernel_of(x), 200, cosine=0.98).representative) == 1


def test_rows_without_a_tangent_are_their_own_groups_and_representatives_are_drawn_from_both_sides():
    x = torch.eye(6, dtype=torch.float64)
    x[2:4] = 0
    assert len(find_near_duplicates(kernel_of(x), 3).representative) == 6
    doubled = torch.cat([x[4:], x[4:]])
    chosen = {
        tuple(find_near_duplicates(kernel_of(doubled), 2, cosine=0.9, seed=k).representative.tolist())
        for k in range(40)
    }
    assert chosen == {(0, 1), (0, 3), (1, 2), (2, 3)}
