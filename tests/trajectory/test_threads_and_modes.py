"""Analyses in several threads, and in torch's inference mode, give the results of one thread outside it."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from kernelmem.trajectory.influence.influence import influence
from kernelmem.trajectory.ledger.ledger import ledger
from kernelmem.trajectory.path_kernel.exact_kernel_machine import exact_kernel_machine
from kernelmem.trajectory.path_kernel.path_kernel import path_kernel
from tests.trajectory.recorded import digits, record

ANALYSES = {
    "ledger": lambda run, model, x: ledger(run, model, x).contributions,
    "ledger by layer": lambda run, model, x: ledger(run, model, x, by="layer").contributions,
    "influence": lambda run, model, x: influence(run, model, x).influence,
    "path kernel": lambda run, model, x: path_kernel(run, model, x).values,
    "exact kernel machine": lambda run, model, x: exact_kernel_machine(run, model, x).contributions(),
}


WITHOUT_DROPOUT = ("path kernel", "exact kernel machine")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs, with dropout 0.2 and without: (run, model, rows)."""
    runs = {}
    for dropout in (0.2, 0.0):
        torch.manual_seed(0)
        x, y = digits(24)
        model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 10)).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = record(tmp_path_factory.mktemp("threads") / "run", model, optimizer, x, y, steps=4, batch=6)
        runs[dropout] = run, model, x[:3]
    return runs


@pytest.mark.parametrize("name", ANALYSES)
def test_threads(runs, name):
    run, model, x = runs[0.0 if name in WITHOUT_DROPOUT else 0.2]
    expected = ANALYSES[name](run, model, x)
    with ThreadPoolExecutor(4) as executor:
        results = list(executor.map(lambda _: ANALYSES[name](run, model, x), range(6)))
    for result in results:
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ANALYSES)
def test_inference_mode(runs, name):
    run, model, x = runs[0.0 if name in WITHOUT_DROPOUT else 0.2]
    expected = ANALYSES[name](run, model, x)
    with torch.inference_mode():
        result = ANALYSES[name](run, model, x.clone())
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-14)
