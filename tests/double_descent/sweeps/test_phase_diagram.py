import json
from pathlib import Path

import pytest
import torch

from kernelmem.core.checks import seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.double_descent.sweeps.options import Execution, SweepOptions
from kernelmem.double_descent.sweeps.phase_diagram import Grid, PhaseDiagram, phase_diagram
from kernelmem.double_descent.sweeps.sweep import sweep
from kernelmem.double_descent.sweeps.training_sets import draw_for_seed
from kernelmem.kernel_machines.model_selection.leave_one_out import leave_one_out
from kernelmem.kernels.ntk import ntk
from kernelmem.training.datasets import LabeledData
from kernelmem.training.ensemble.recipe import Recipe
from kernelmem.training.mlp import mlp


def blobs(n: int = 40, m: int = 30, d: int = 6, C: int = 3) -> LabeledData:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n + m) % C
    x = torch.randn(n + m, d, generator=generator) + 2.0 * torch.eye(C, d)[y]
    return LabeledData("blobs", x[:n], y[:n], x[n:], y[n:])


AXES = {"widths": [2, 9], "samples": [15, 40], "steps": [5, 60], "noise": [0.0, 0.3]}


def test_cells_equal_those_of_sweeps(tmp_path: Path) -> None:
    data, recipe = blobs(), Recipe(lr=0.05)
    found = phase_diagram(data, Grid(**AXES), recipe=recipe, n_seeds=2, execution=Execution(out=tmp_path))
    assert found.test_error.shape == (2, 2, 2, 2, 2)
    by_steps = sweep(
        data, "steps", [5, 60], noise=0.3, recipe=recipe, n_seeds=2, options=SweepOptions(width=9, n=40, control=2)
    )
    for name in ("test_error", "train_error", "memorized_flips"):
        torch.testing.assert_close(getattr(found, name)[:, 1, 1, 1], getattr(by_steps.curves, name))
    torch.testing.assert_close(found.test_error[:, 0, 1, 1], by_steps.control.test_error)
    assert bool(found.memorized_flips[:, 0].isnan().all())
    seen: list[tuple[int, int]] = []
    again = phase_diagram(
        data, Grid(**AXES), recipe=recipe, n_seeds=2, execution=Execution(out=tmp_path),
        progress=lambda a, b: seen.append((a, b)),
    )  # fmt: skip
    assert seen == [(16, 16)]
    assert torch.equal(again.test_error, found.test_error)

    drawn = draw_for_seed(data.y_train, seed_sequence(0, ["0", "1"])["1"])
    rows = drawn.training_set(15, 0.3)
    kernel = ntk(mlp(6, 9, 3, seed=drawn.init_seed), data.x_train[rows.indices], outputs="trace").double()
    own = leave_one_out(
        kernel, torch.eye(3, dtype=torch.float64)[rows.labels], 0.01 * float(drawn_mean(data, drawn, 15, 9))
    )
    assert float(found.kernel_flips[1, 1, 0, 1]) == pytest.approx(
        float(own.memorization[rows.flipped].mean()), rel=1e-4
    )
    assert float(found.kernel_clean[1, 1, 0, 1]) == pytest.approx(
        float(own.memorization[~rows.flipped].mean()), rel=1e-4
    )
    # wrong labels are memorized more than right ones: the rows around them say otherwise
    assert float(found.kernel_flips[:, 1].mean()) > float(found.kernel_clean[:, 1].mean())

    summary = json.loads(json.dumps(found.summary(), allow_nan=False))
    assert summary["noise"] == [0.0, 0.3]
    assert summary["memorized_flips"]["mean"][0][0][0][0] is None
    assert len(found.to_frame()) == 32
    assert "phase diagram" in str(found)
    assert len(found.plot().axes) == 8 + 4
    found.save(tmp_path / "a.safetensors")
    read = PhaseDiagram.load(tmp_path / "a.safetensors")
    assert torch.equal(read.test_error, found.test_error)
    assert read.widths == found.widths
    assert str(read) == repr(found)
    assert len(str(found).splitlines()) <= 40
    frame = found.to_frame()
    row = frame[
        (frame.seed == 1) & (frame.noise == 0.3) & (frame.samples == 15) & (frame.width == 9) & (frame.step == 5)
    ]
    assert float(row.test_error.iloc[0]) == float(found.test_error[1, 1, 0, 1, 0])
    assert float(row.kernel_flips.iloc[0]) == float(found.kernel_flips[1, 1, 0, 1])


def drawn_mean(data: LabeledData, drawn, n: int, width: int) -> float:
    x = data.x_train[drawn.order[:n]]
    return float(ntk(mlp(6, width, 3, seed=drawn.init_seed), x, outputs="trace").diagonal().mean())


def test_refused() -> None:
    for name, values in (("widths", []), ("steps", [60, 5]), ("noise", [0.1, 0.1]), ("samples", [15.5])):
        with pytest.raises(InputError):
            Grid(**AXES | {name: values})
    with pytest.raises(InputError):
        phase_diagram(blobs(), Grid(**AXES | {"samples": [41]}))
