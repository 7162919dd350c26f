"""kernelmem.tangents.sketch: unbiased, with the stated error, the same for a row whatever comes with it."""

import pytest
import torch
from torch import nn

from kernelmem.core.errors import InputError
from kernelmem.kernels.ntk import ntk
from kernelmem.tangents import sketch
from kernelmem.tangents.sketch import tangent_features
from kernelmem.testing.zoo import zoo_entries

NAMES = ("linear", "convolution called twice", "learned positions", "residual convolutions", "vision transformer")
ENTRIES = [entry for entry in zoo_entries() if entry.name in NAMES]
SEEDS, DIM = 48, 32


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
@pytest.mark.parametrize("outputs", ["pseudo", "trace"])
@pytest.mark.parametrize("seeds", [SEEDS, pytest.param(400, marks=pytest.mark.soak)])
def test_unbiased_with_the_stated_error(entry, outputs, seeds):
    case = entry.case(n=4)
    K = ntk(case.model, case.x, outputs=outputs)
    draws = []
    for seed in range(seeds):
        features = tangent_features(case.model, case.x, DIM, seed=seed, outputs=outputs)
        draws.append(features @ features.T)
    draws = torch.stack(draws)
    spread = draws.std(0)
    z = (draws.mean(0) - K).abs() / (spread / seeds**0.5)
    assert float(z.max()) < 4.5  # ten entries
    size = (K.diagonal()[:, None] * K.diagonal()[None]).sqrt()
    slack = 1 + 4 / seeds**0.5  # sampling error of the spread itself
    assert float((spread / size).max()) < slack * 3 / DIM**0.5
    assert float((spread.diagonal() / K.diagonal()).max()) < slack * (8 / DIM) ** 0.5


def test_a_large_table_is_projected_by_its_tokens():
    """Unbiased, with signs for each table row: the projections of two rows with the same token are correlated."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 3, padding_idx=0), nn.Flatten(), nn.Tanh(), nn.Linear(12, 2)).double()
    x = torch.tensor([[1, 2, 2, 0], [2, 3, 4, 4], [5, 6, 7, 8]])
    K = ntk(model, x, outputs="trace", parameters=["0.weight"])
    options = {"outputs": "trace", "parameters": ["0.weight"]}
    draws = [tangent_features(model, x, DIM, seed=seed, **options) for seed in range(SEEDS)]
    draws = torch.stack([features @ features.T for features in draws])
    z = (draws.mean(0) - K).abs() / (draws.std(0) / SEEDS**0.5)
    assert float(z.max()) < 4.5
    assert float((draws.std(0).diagonal() / K.diagonal()).max()) < (1 + 4 / SEEDS**0.5) * (8 / DIM) ** 0.5


class Softmax(nn.Module):
    def forward(self, h):
        return h.softmax(-1)


def test_outputs_that_sum_to_a_constant_have_no_features():
    """The gradients of their sum are rounding errors, which the certificate does not compare."""
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), Softmax()).double(),
        torch.randn(5, 3).double(),
    )
    assert float(tangent_features(model, x, 16, seed=0).abs().max()) < 1e-14


def test_error_falls_with_the_square_root_of_dim():
    case = ENTRIES[0].case(n=4)
    K = ntk(case.model, case.x, outputs="pseudo")
    errors = []
    for dim in (64, 1024):
        found = [tangent_features(case.model, case.x, dim, seed=seed) for seed in range(60)]
        errors.append(torch.stack([(f @ f.T - K).norm() for f in found]).square().mean().sqrt())
    assert float(errors[0] / errors[1]) == pytest.approx(4.0, rel=0.35)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_row_has_the_same_features_in_any_company(entry, monkeypatch):
    case = entry.case(n=5)
    whole = tangent_features(case.model, case.x, 24, seed=3)
    parts = [tangent_features(case.model, case.x[i : i + 1], 24, seed=3) for i in range(5)]
    scale = float(whole.abs().max())
    assert float((torch.cat(parts) - whole).abs().max()) < 1e-12 * scale
    monkeypatch.setattr(sketch, "CHUNK_BYTES", 1)
    assert float((tangent_features(case.model, case.x, 24, seed=3) - whole).abs().max()) < 1e-12 * scale
    assert not torch.equal(tangent_features(case.model, case.x, 24, seed=4), whole)


@pytest.mark.parametrize("options", [{"dim": 0}, {"dim": 2.5}, {"dim": True}, {"outputs": "full"}, {"seed": -1}])
def test_bad_arguments(options):
    arguments = {"dim": 4, "seed": 0} | options
    with pytest.raises(InputError):
        tangent_features(nn.Linear(3, 2), torch.zeros(2, 3), **arguments)
