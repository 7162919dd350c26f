"""Query-loss difference: kernel machines as the algorithm, right, wrong and reversed attributions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kernelmem as km
from kernelmem.memorization.attribution import QLD
from kernelmem.training import Recipe
from tests.memorization.attribution.test_subset_bank import TRAINING, data, ridge_model
from tests.profiles import examples


def planted(seed=0):
    """Two rows per class have the first feature, which alone decides the test rows."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.1 * torch.randn(40, 3, generator=generator).double()
    y = torch.randint(2, (40,), generator=generator)
    y[:4] = torch.tensor([0, 0, 1, 1])
    x[:, 0] = 0.0
    x[:4] = 0.0
    x[:4, 0] = torch.tensor([-3.0, -3.0, 3.0, 3.0]).double()
    x_test = torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]).double()
    return (x, y), (x_test, torch.tensor([0, 1]))


def measure(attribution, *, share=0.1, pairs=6, **options):
    (x, y), test = planted()
    return km.qld(
        attribution,
        (x, y),
        lambda indices, seed: ridge_model(x, y, indices),
        test,
        share=share,
        pairs=pairs,
        options=km.ShadowOptions(dtype=torch.float64),
        **options,
    )


def right():
    attribution = torch.zeros(2, 40)
    attribution[:, :4] = 1.0
    return attribution


def test_the_rows_that_decide_are_found():
    found = measure(right())
    assert sorted(found.removed.tolist()) == [0, 1, 2, 3]
    assert found.difference.low > 0
    assert "positive" in str(found)


def test_rows_that_do_not_matter_and_a_metric_that_ignores_the_rows():
    """An index that is shifted by four finds nothing: random rows sometimes are the right ones."""
    assert measure(right().roll(4, 1)).difference.value <= 0
    assert measure(-right()).difference.value <= 0


def test_losses_are_those_of_literal_retraining():
    found = measure(right(), share=0.05, pairs=2)
    (x, y), (x_test, y_test) = planted()
    rest = torch.ones(40, dtype=torch.bool).index_fill(0, found.removed, False).nonzero()[:, 0]
    outputs = ridge_model(x, y, rest)(x_test)
    expected = torch.nn.functional.cross_entropy(outputs, y_test, reduction="none").detach()
    torch.testing.assert_close(found.chosen_losses, expected.expand(2, 2), rtol=1e-9, atol=1e-9)


@examples(0.2)
@given(seed=st.integers(0, 2**31))
def test_pairs_have_the_same_seeds(seed):
    """All rows are equal: without any of them the same networks are trained, and the difference is zero."""
    x, y = torch.ones(16, 2), torch.zeros(16, dtype=torch.int64)
    training = km.EnsembleTraining(Recipe(steps=10, lr=0.05), width=3)
    attribution = torch.rand(2, 16, generator=torch.Generator().manual_seed(seed))
    options = km.ShadowOptions(n_classes=2, dtype=torch.float64)
    found = km.qld(attribution, (x, y), training, (torch.eye(2), y[:2]), seed=seed, share=0.3, pairs=3, options=options)
    torch.testing.assert_close(found.chosen_losses, found.random_losses, rtol=1e-9, atol=1e-12)
    assert len(found.chosen_losses[:, 0].unique()) == 3  # and the pairs have different ones


def test_text_table_file_and_refusals(tmp_path):
    train, test = data()
    found = km.qld(torch.rand(6, 24), train, TRAINING, test, share=0.2, pairs=3)
    assert len(found.removed) == 5
    assert len(found.to_frame()) == 3
    assert str(QLD.load(found.save(tmp_path / "qld.safetensors"))) == str(found)
    for attribution, options, message in (
        (torch.rand(5, 24), {}, "of shape"),
        (torch.rand(6, 24), {"share": 0.99}, "24 rows left out"),
        (torch.rand(6, 24), {"pairs": 1}, "pairs"),
    ):
        with pytest.raises(km.InputError, match=message):
            km.qld(attribution, train, TRAINING, test, **options)
