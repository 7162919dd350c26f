"""kernelmem.recording.step_checks.loss_rows: losses that depend on other rows are refused, others are not."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core.errors import InputError
from kernelmem.recording.step_checks.loss_rows import check_rows_are_independent
from tests.profiles import examples


def cross_entropy(f, y):
    return F.cross_entropy(f, y, reduction="none")


def focal(f, y):
    losses = cross_entropy(f, y)
    return (1 - (-losses).exp()) ** 2 * losses


def margin(f, y):
    return F.multi_margin_loss(f, y, reduction="none")


def squared(f, y):
    return (f - F.one_hot(y, f.shape[1])).square().sum(1)


def infonce(f, y):
    return F.cross_entropy(F.normalize(f) @ F.normalize(f.flip(0)).T, torch.arange(len(f)), reduction="none")


def normalized_focal(f, y):
    losses = cross_entropy(f, y)
    weight = (1 - (-losses).exp()) ** 2
    return weight * losses / weight.sum() * len(losses)


def detached_normalization(f, y):
    losses = cross_entropy(f, y)
    return losses / losses.detach().mean()


def hardest(f, y):
    losses = cross_entropy(f, y)
    return losses * (losses >= losses.topk(max(1, len(losses) // 2)).values[-1])


def batch_size(f, y):
    return cross_entropy(f, y) / len(f)


def class_balanced(f, y):
    return cross_entropy(f, y) / torch.bincount(y, minlength=f.shape[1])[y]


def weighted_sum(f, y):
    return cross_entropy(f, y) + 1e-6 * f.mean()


def random(f, y):
    return cross_entropy(f, y) * torch.rand(len(f))


INDEPENDENT = (cross_entropy, focal, margin, squared)
COUPLED = (infonce, normalized_focal, detached_normalization, batch_size, class_balanced, weighted_sum, random)


def batch(n, dtype, seed, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(n, 4, generator=generator, dtype=torch.float64).to(dtype), torch.arange(n) % 4


dtypes = st.sampled_from([torch.float64, torch.float32])


@given(st.sampled_from(INDEPENDENT), st.integers(1, 40), dtypes, st.integers(0, 99), st.floats(1e-3, 1e3))
@examples(2)
def test_losses_of_single_rows_are_accepted(loss, n, dtype, seed, size):
    outputs, targets = batch(n, dtype, seed, size)
    check_rows_are_independent(loss, outputs, targets, step=seed, name="loss")


@given(st.sampled_from(COUPLED), st.integers(6, 40), st.integers(0, 99))
@examples(1)
def test_losses_that_depend_on_other_rows_are_refused(loss, n, seed):
    outputs, targets = batch(n, torch.float64, seed)
    with pytest.raises(InputError, match=r"loss of row \d+ of the batch of step .* depends on the other rows"):
        check_rows_are_independent(loss, outputs, targets, step=seed, name="loss")


def test_hard_mining_is_refused_within_a_few_steps():
    refused = 0
    for step in range(20):
        try:
            check_rows_are_independent(hardest, *batch(8, torch.float64, step), step=step, name="hardest")
        except InputError:
            refused += 1
    assert refused >= 15


def test_a_constant_loss_has_no_derivative():
    check_rows_are_independent(lambda f, y: torch.zeros(len(f)), *batch(5, torch.float64, 0), step=0, name="zero")


def test_a_loss_that_fails_on_a_part_of_the_batch_is_refused():
    def pairs(f, y):
        return cross_entropy(f.view(4, 2, -1).flatten(0, 1), y)

    with pytest.raises(InputError, match=r"which fails on a part of the batch of step 0 \(.*batch_size"):
        check_rows_are_independent(pairs, *batch(8, torch.float64, 0), step=0, name="pairs")
