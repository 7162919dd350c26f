"""The networks by width: sizes that are published, shapes, what is refused."""

import pytest
import torch

from experiments.cifar_width_sweep.networks import ConvolutionalNetwork, ResNet18
from kernelmem.core.errors import InputError


def size(model):
    return sum(p.numel() for p in model.parameters())


def test_the_usual_resnet_has_its_published_size():
    assert round(size(ResNet18(64)) / 1e6, 2) == 11.17  # "11.17 M" for pictures of 32 x 32 and ten classes


@pytest.mark.parametrize("family", [ResNet18, ConvolutionalNetwork])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_logits_gradients_and_growth(family, width):
    torch.manual_seed(0)
    model = family(width, 7)
    x = torch.randn(4, 3, 32, 32)
    out = model(x)
    assert out.shape == (4, 7)
    out.square().sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    assert 3 < size(family(32)) / size(family(16)) < 4.2  # quadratic in width


def test_small_pictures_and_one_channel():
    assert ConvolutionalNetwork(2, 3, channels=1)(torch.randn(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize("width", [0, -1, 1.5, True])
def test_what_is_no_width_is_refused(width):
    with pytest.raises(InputError, match="width"):
        ResNet18(width)
    with pytest.raises(InputError, match="n_classes=1"):
        ConvolutionalNetwork(2, 1)
