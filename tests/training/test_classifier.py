"""kernelmem.training.classifier and the default network."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernelmem.core.errors import InputError, NumericalError
from kernelmem.core.files.weight_files import weights_sha256
from kernelmem.training.classifier import Training, train_classifier
from kernelmem.training.mlp import Standardize, standardized_mlp


def data(n=60):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 5, generator=generator), torch.randint(3, (n,), generator=generator)


def test_fits_every_label_and_repeats_to_the_bit():
    x, y = data()
    hashes = []
    for noise in (1, 2):  # the global random state plays no part
        torch.manual_seed(noise)
        model = standardized_mlp(x, 3, seed=7, per_feature=True)
        result = train_classifier(model, x, y, epochs=60, batch_size=16, seed=8)
        hashes.append(weights_sha256(model))
    assert result.train_accuracy == 1.0
    assert not model.training
    assert hashes[0] == hashes[1]
    other = standardized_mlp(x, 3, seed=7, per_feature=True)
    train_classifier(other, x, y, epochs=60, batch_size=16, seed=9)
    assert weights_sha256(other) != hashes[0]


def test_one_full_batch_step_is_torch_adam():
    x, y = data()
    model, twin = (standardized_mlp(x, 3, seed=1, per_feature=True) for _ in range(2))
    train_classifier(model, x, y, epochs=1, batch_size=60, lr=0.01, seed=0)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.01)
    F.cross_entropy(twin(x[order]), y[order]).backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_rows_are_converted_to_the_dtype_of_the_model():
    x, y = data()
    models = [standardized_mlp(x, 3, seed=1, per_feature=True) for _ in range(2)]
    for model, rows in zip(models, (x, x.double()), strict=True):
        train_classifier(model, rows, y, epochs=2, seed=0)
    assert weights_sha256(models[0]) == weights_sha256(models[1])
    with pytest.raises(InputError, match="range of the model's dtype, float32"):
        train_classifier(models[0], x.double() * 1e300, y, epochs=2, seed=0)


def test_a_single_last_row_joins_the_batch_before_it():
    x, y = data(33)  # BatchNorm has no variance of one row
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    assert train_classifier(model, x, y, epochs=2, batch_size=16, seed=0).steps == 4
    x, y = data(34)
    assert train_classifier(nn.Linear(5, 3), x, y, epochs=2, batch_size=16, seed=0).steps == 6


def test_divergence_is_refused():
    x, y = data()
    with pytest.raises(NumericalError, match="learning rate"):
        train_classifier(nn.Linear(5, 3), x * 1e37, y, epochs=3, lr=1e30, seed=0)


def test_standardize():
    x = torch.tensor([[0.0, 5.0, 1.0], [0.0, 7.0, 3.0]])
    per_feature = Standardize(x, per_feature=True)(x)
    assert per_feature.tolist() == [[0.0, -1.0, -1.0], [0.0, 1.0, 1.0]]
    common = Standardize(x)(x)
    assert float(common.square().mean()) == pytest.approx(1.0)


@pytest.mark.parametrize("unit", [1e-30, 1e6, 1e20])
@pytest.mark.parametrize("per_feature", [True, False])
def test_standardize_does_not_depend_on_the_unit(unit, per_feature):
    x, _ = data()
    expected = Standardize(x, per_feature=per_feature)(x)
    scaled = x.double() * unit
    assert torch.allclose(Standardize(scaled, per_feature=per_feature)(scaled.float()), expected, atol=1e-5)


def test_standardize_does_not_amplify_rounding():
    x = torch.cat([data()[0].double(), torch.full((60, 1), 0.1, dtype=torch.float64)], 1)
    seen = Standardize(x, per_feature=True)
    assert seen.double()(x)[:, 5].abs().max() < 1e-6  # an audit looks in float64 at constants that were kept in float32


def test_a_training_is_saved_printed_and_tabulated(tmp_path):
    x, y = data()
    training = train_classifier(nn.Linear(5, 3), x, y, epochs=2, seed=0, progress=False)
    assert vars(Training.load(training.save(tmp_path / "training.safetensors"))) == vars(training)
    assert len(str(training).splitlines()) == 2
    assert training.recipe in repr(training)
    assert training.to_frame()["steps"].tolist() == [training.steps]


def test_progress_counts_epochs():
    x, y = data()
    calls = []
    train_classifier(nn.Linear(5, 3), x, y, epochs=3, seed=0, progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]
