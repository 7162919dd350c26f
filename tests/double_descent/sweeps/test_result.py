import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.double_descent.presets.digits import KINDS, digits_pool, preset, run_preset, write_sweep
from kernelmem.double_descent.sweeps.options import Execution
from kernelmem.double_descent.sweeps.result import Curves, Sweep
from kernelmem.double_descent.sweeps.threshold import Threshold
from kernelmem.plotting.style import figure_files
from kernelmem.training.ensemble.recipe import Recipe

AXIS = (4.0, 8.0, 16.0, 32.0, 64.0)


def curves(seeds: int, *, hill: float = 1.0, flips: bool = True) -> Curves:
    generator = torch.Generator().manual_seed(seeds)
    own = {
        name: 0.02 * torch.rand(seeds, 5, generator=generator, dtype=torch.float64)
        for name in Curves.__dataclass_fields__
    }
    own["test_error"] = own["test_error"] + torch.tensor([0.3, 0.2, 0.4, 0.3, 0.1]) * hill
    own["test_loss"] = own["test_loss"] + torch.tensor([1.0, 0.9, 0.95, 0.8, 0.7])
    own["train_error"] = own["train_error"] + torch.tensor([0.3, 0.2, 0.05, 0.0, 0.0])
    if not flips:
        own["memorized_flips"] = own["recovered_flips"] = torch.full((seeds, 5), math.nan, dtype=torch.float64)
    return Curves(**own)


def sweep_of(seeds: int = 4, **more: object) -> Sweep:
    flat = replace(curves(4, flips=False), test_error=torch.linspace(0.2, 0.05, 5, dtype=torch.float64).repeat(4, 1))
    held = {"curves": curves(seeds), "control": flat, "threshold": None, "metric": "test_error", "epsilon": 0.1}
    return Sweep(kind="model", axis=AXIS, seconds=1.5, config={"recipe": {"steps": 3}, "n": 10}, **held | more)


def test_summary_has_means_peaks_and_threshold() -> None:
    own = sweep_of()
    found = json.loads(json.dumps(own.summary(), allow_nan=False))
    assert {"kind", "axis", "seeds", "seconds", "config"} <= set(found)
    for name in ("test_error", "test_loss"):
        assert len(found[name]["mean"]) == len(found[name]["se"]) == 5
    assert found["train_error"]["mean"] == pytest.approx(own.curves.train_error.mean(0).tolist())
    assert found["memorized_flips"]["mean"][0] == pytest.approx(float(own.curves.memorized_flips[:, 0].mean()))
    peak = found["peak"]
    assert (peak["metric"], peak["axis_value"]) == ("test_error", 16)
    assert peak["rise"] == pytest.approx(0.2, abs=0.03)
    assert peak["fall"] == pytest.approx(0.3, abs=0.03)
    assert 0 < peak["rise_se"] < 0.02
    assert found["control"]["rise"] == 0
    assert found["control"]["rise_se"] == 0
    assert 12 < found["threshold"]["value"] < 16
    assert found["threshold"]["source"] == "the sweep"
    low, high = found["threshold"]["interval"]
    assert low < found["threshold"]["value"] < high


def test_few_seeds_and_diverged_networks_have_no_peak() -> None:
    few = sweep_of(seeds=2, control=None).summary()
    assert few["peak"]["rise"] is None
    assert few["control"] is None
    broken = curves(4)
    broken.test_error[1, 2] = math.nan
    broken.train_error[1, 2] = math.nan
    found = sweep_of(curves=broken).summary()
    assert found["peak"]["rise"] is None
    assert found["test_error"]["mean"][2] is None
    assert found["threshold"]["value"] is None
    json.dumps(found, allow_nan=False)
    str(sweep_of(curves=broken))


def test_saved_and_read(tmp_path: Path) -> None:
    for own in (
        sweep_of(),
        sweep_of(control=None, threshold=Threshold(13.0, 12.0, 14.0, 0.1, "falling", evaluated=(8.0, 16.0))),
        sweep_of(threshold=Threshold(math.nan, -math.inf, -math.inf, 0.1, "falling", "below")),
    ):
        path = own.save(tmp_path / "s.safetensors")
        read = Sweep.load(path)
        assert json.dumps(read.summary()) == json.dumps(own.summary())
        assert str(read.threshold) == str(own.threshold)
        for name, value in own.curves.tensors().items():
            assert torch.equal(value, read.curves.tensors()[name])
        assert (read.control is None) == (own.control is None)
    path.write_bytes(path.read_bytes().replace(b'"epsilon', b'"epsilom'))
    with pytest.raises(FileCorruptError):
        Sweep.load(path)


def test_parts_of_a_sweep_are_results(tmp_path: Path) -> None:
    whole = sweep_of()
    for part in (whole.curves, whole.peak(), whole.interpolation()):
        read = type(part).load(part.save(tmp_path / "part.safetensors"))
        assert str(read) == str(part) == repr(part)
        assert len(str(part).splitlines()) <= 10
    assert len(whole.curves.to_frame()) == 4 * 5
    assert float(whole.curves.to_frame().query("seed == 2 and index == 3").test_loss.iloc[0]) == float(
        whole.curves.test_loss[2, 3]
    )
    assert whole.peak().to_frame().rise.iloc[0] == whole.peak().rise
    assert whole.interpolation().to_frame().value.iloc[0] == whole.interpolation().value
    assert "test_error" in whole.peak()._repr_html_()


def test_a_long_axis_is_printed_on_one_screen() -> None:
    own = sweep_of()
    long = {name: value.repeat(1, 20) for name, value in own.curves.tensors().items()}
    many = replace(own, axis=tuple(float(a) for a in range(100)), curves=Curves(**long), control=None)
    lines = str(many).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 130
    assert lines[2].split()[0] == "0"
    assert lines[31].split()[0] == "99"


def test_frame_and_text() -> None:
    own = sweep_of()
    frame = own.to_frame()
    assert len(frame) == 4 * 5 + 4 * 5
    line = frame[(frame.labels == "noisy") & (frame.seed == 2) & (frame.width == 16)]
    assert float(line.test_error.iloc[0]) == float(own.curves.test_error[2, 2])
    assert "peak of test_error" in str(own)
    assert "model-wise" in str(own)


def test_figures(tmp_path: Path) -> None:
    own = sweep_of()
    files = figure_files(own.plot(theory=[([4, 64], [1, 0.7], "theory")]), "figure")
    assert files["figure.png"].startswith(b"\x89PNG")
    assert b"<svg" in files["figure.svg"]
    assert files == figure_files(own.plot(theory=[([4, 64], [1, 0.7], "theory")]), "figure")
    figure = own.plot(theory=[(AXIS, AXIS, "exact")])
    legends = [*figure.legends, figure.axes[1].get_legend()]
    texts = [text.get_text() for legend in legends for text in legend.get_texts()]
    assert {"exact", "training", "training error 0.1", "predicted as the wrong label (memorized)"} <= set(texts)
    bare = replace(own, control=None, curves=curves(4, flips=False)).plot()
    assert len(bare.axes) == 2
    written = write_sweep(own, tmp_path / "out")
    assert {path.name for path in written} == {
        "summary.json",
        "results.csv",
        "figure.svg",
        "figure.png",
        "sweep.safetensors",
    }


def test_refused() -> None:
    with pytest.raises(InputError, match="kind"):
        replace(sweep_of(), kind="models")
    with pytest.raises(InputError, match="axis"):
        replace(sweep_of(), axis=(1.0, 2.0))
    with pytest.raises(InputError, match="control"):
        sweep_of(control=None).peak(control=True)
    with pytest.raises(InputError, match="preset"):
        preset("models")


def test_presets_are_complete_and_small_ones_run(tmp_path: Path) -> None:
    pool = digits_pool()
    assert (len(pool.x_train), len(pool.x_test)) == (997, 800)
    assert float(pool.x_train.min()) == pytest.approx(-0.6)
    assert float(pool.x_train.max()) == pytest.approx(1.4)
    for kind in KINDS:
        for size in ("quick", "paper"):
            assert preset(kind, size).kind == kind
    tiny = {"values": (4.0, 8.0), "n_seeds": 4, "control": 4, "n": 60}
    small = {
        "model": {"recipe": Recipe(steps=300, batch_size=30), "noise": 0.3, "values": (2.0, 4.0, 32.0)},
        "epoch": {"recipe": Recipe(steps=8)},
        "sample": {"values": (30.0, 60.0), "recipe": Recipe(steps=8)},
        "features": {"values": (20.0, 60.0, 100.0)},
    }
    for kind in KINDS:
        own = replace(preset(kind), **tiny | small[kind], search=False)
        found = run_preset(own, execution=Execution(out=tmp_path / kind))
        assert found.curves.shape == (4, len(own.values))
        assert json.loads((tmp_path / kind / "summary.json").read_text())["kind"] == kind
