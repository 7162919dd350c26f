"""Crops and flips are what they say; training learns, repeats itself, and refuses what is no picture."""

import pytest
import torch
from torch import nn

from experiments.cifar_width_sweep.image_training import ImageTraining, crops_and_flips
from experiments.cifar_width_sweep.networks import ConvolutionalNetwork
from kernelmem.core.errors import InputError, NumericalError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_crop_is_a_part_of_the_padded_picture_and_all_parts_come():
    x = torch.arange(1.0, 13.0).reshape(1, 1, 3, 4).expand(400, 2, 3, 4)
    padded = nn.functional.pad(x[0], (1, 1, 1, 1))
    parts = {(i, j): padded[:, i : i + 3, j : j + 4] for i in range(3) for j in range(3)}
    met = dict.fromkeys(parts, 0)
    for row in crops_and_flips(x, 1, False, generator()):
        found = [key for key, part in parts.items() if torch.equal(part, row)]
        assert len(found) == 1
        met[found[0]] += 1
    assert min(met.values()) > 20  # of 44 expected each


def test_about_half_are_mirrored_and_nothing_else():
    x = torch.arange(12.0).reshape(1, 1, 3, 4).expand(300, 1, 3, 4)
    out = crops_and_flips(x, 0, True, generator())
    same = (out == x).flatten(1).all(1)
    mirrored = (out == x.flip(3)).flatten(1).all(1)
    assert bool((same | mirrored).all())
    assert 110 < int(mirrored.sum()) < 190
    assert torch.equal(crops_and_flips(x, 0, False, generator()), x)


@pytest.mark.soak
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_learns_and_repeats_itself(optimizer):
    torch.manual_seed(0)
    y = torch.arange(40) % 2
    x = torch.randn(40, 3, 8, 8) * 0.1 + y[:, None, None, None]
    train = ImageTraining(epochs=15, batch_size=8, lr=0.02, optimizer=optimizer, padding=1, device="cpu")
    weights = []
    for _ in range(2):
        torch.manual_seed(1)
        model = ConvolutionalNetwork(2, 2)
        before = nn.functional.cross_entropy(model(x), y).item()
        train(model, x, y, 3)
        assert not model.training
        assert nn.functional.cross_entropy(model(x), y).item() < before / 2
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_what_cannot_be_trained_is_refused():
    model = ConvolutionalNetwork(1, 2)
    with pytest.raises(InputError, match="images"):
        ImageTraining(epochs=1)(model, torch.zeros(4, 192), torch.zeros(4, dtype=torch.int64), 0)
    with pytest.raises(InputError, match="lion"):
        ImageTraining(epochs=1, optimizer="lion")(model, torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64), 0)  # type: ignore[arg-type]
    with pytest.raises(NumericalError, match="finite"):
        ImageTraining(epochs=3, optimizer="sgd", lr=1e30, device="cpu")(
            model, torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]), 0
        )
