"""Wide networks in NTK parametrization approach their linearization: at w_0, and with the infinite-width kernel.

Lee et al. 2019 bound the distance to the own linearization by O(1/√width). What is seen is faster: with output weights of mean
zero the terms of order 1/√width cancel, and 1/width is left. What falls as 1/√width is the distance to the training that
the infinite-width kernel predicts, because the kernel at w_0 does.
"""

import numpy as np
import pytest
import torch

import kernelmem as km
from kernelmem.kernel_machines.linearized.function_space import Linearization
from kernelmem.kernel_machines.linearized.gradient_flow import gradient_descent
from kernelmem.kernel_machines.linearized.sgd_config import SGDConfig
from kernelmem.testing.ntk_parametrization import ntk_mlp

N, M, STEPS, LR = 8, 6, 60, 0.5
NETWORK = {"activation": "erf", "weight_var": 1.5, "bias_var": 0.1}


def gaps(width, seed, depth):
    """|network − linearization| on test rows after training: with the kernel at w_0, and with the infinite one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N + M, 4, generator=generator, dtype=torch.float64)
    x = x / x.norm(dim=1, keepdim=True) * 2
    y = torch.sin(x[:N].sum(1, keepdim=True))
    model = ntk_mlp(4, width, depth=depth, seed=seed, **NETWORK)
    with torch.no_grad():
        start = model(x)
    found = []
    for kernel in (km.ntk(model, x, verify=False), km.infinite_ntk(x, depth=depth, **NETWORK)):
        where = {"initial": start[:N], "K_test": kernel[N:, :N], "initial_test": start[N:]}
        found.append(
            gradient_descent(
                kernel[:N, :N], y, steps=STEPS, sgd=SGDConfig(lr=LR), linearization=Linearization(**where)
            ).test[0]
        )
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (0.5 * (model(x[:N]) - y).square().sum(1).mean()).backward()
        optimizer.step()
    with torch.no_grad():
        return [float((model(x[N:]) - own).norm()) for own in found]


def orders(widths, seeds, depth):
    """Slopes of the logarithm of the root mean square gap against that of the width, and the gaps."""
    found = np.array([[gaps(width, seed, depth) for seed in range(seeds)] for width in widths])
    sizes = np.sqrt((found**2).mean(1))
    return [float(np.polyfit(np.log(widths), np.log(sizes[:, k]), 1)[0]) for k in range(2)], sizes


def test_wider_networks_are_nearer_to_their_linearization():
    (own, infinite), sizes = orders([16, 256], 8, 1)
    assert own < -0.5, sizes
    assert -0.8 < infinite < -0.3, sizes


@pytest.mark.soak
@pytest.mark.parametrize("depth", [1, 2])
def test_rates(depth):
    (own, infinite), sizes = orders([32, 128, 512, 2048], 16, depth)
    print(depth, own, infinite, sizes.tolist())
    assert -1.15 < own < -0.5, (own, sizes)
    assert -0.6 < infinite < -0.4, (infinite, sizes)
