"""experiments/leave_one_out_agreement: a small run of it, and the truth that it compares with."""

import json

import pytest
import torch
import torch.nn.functional as F

from experiments.leave_one_out_agreement.configs import Options
from experiments.leave_one_out_agreement.run import run
from experiments.leave_one_out_agreement.training import make, retrain

SMALL = {"n_train": 24, "n_test": 5, "steps": 12, "batch": 7}


def test_networks_that_are_trained_together_are_those_trained_alone():
    problem = make(Options(**SMALL), 0)
    first = {name: own.detach().clone() for name, own in problem.model.state_dict().items()}
    weights = torch.ones(2, 24, dtype=torch.float64)
    weights[1, 3] = 0.0
    together = retrain(problem, first, weights)
    options = problem.options
    optimizer = torch.optim.SGD(
        problem.model.parameters(), lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay
    )
    for index in problem.batches:  # the divisor stays that of the batch
        kept = index[index != 3]
        optimizer.zero_grad()
        (F.cross_entropy(problem.model(problem.x[kept]), problem.y[kept], reduction="sum") / len(index)).backward()
        optimizer.step()
    with torch.no_grad():
        assert float((together[0][1] - problem.model(problem.x)).abs().max()) < 1e-12
        assert float((together[1][1] - problem.model(problem.x_test)).abs().max()) < 1e-12
    assert float((together[0][0] - together[0][1]).abs().max()) > 1e-4


@pytest.mark.soak
def test_a_small_run_writes_its_files(tmp_path, capsys):
    run(Options(**SMALL, seeds=2, out=tmp_path))
    assert "unrolled influence" in capsys.readouterr().out
    figures = json.loads((tmp_path / "results.json").read_text())["figures"]
    assert figures["unrolled_self"]["min"] > 0.95  # so few steps are nearly linear
    assert figures["unrolled_test_halved"]["min"] > figures["unrolled_test_permuted"]["max"] + 0.5
    for name in ("figure.svg", "figure.png", "runs.csv"):
        assert (tmp_path / name).stat().st_size > 1000
