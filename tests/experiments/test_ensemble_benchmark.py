"""The engines of the benchmark of ensembles train the same networks on the same batches."""

import pytest
import torch

from experiments.benchmarks.ensemble.engines import ENGINES, problem
from experiments.benchmarks.ensemble.run import ENGINES as NAMES


@pytest.mark.parametrize("batch_size", [16, pytest.param(None, marks=pytest.mark.soak)])
def test_all_engines_reach_the_same_outputs(batch_size):
    assert tuple(ENGINES) == NAMES
    task = problem(40, batch_size, torch.float64)
    reached = []
    for make in ENGINES.values():
        engine = make(task)
        before = engine.outputs(task.x_test)
        for _ in range(3):
            engine.step()
        reached.append(engine.outputs(task.x_test))
        assert float((reached[-1] - before).abs().max()) > 1e-3
    for outputs in reached[1:]:
        torch.testing.assert_close(outputs, reached[0], rtol=0, atol=1e-10)
