"""The published width sweep, on a made-up CIFAR folder: it runs, resumes, and refuses a folder without files."""

import json
from dataclasses import replace

import numpy as np
import pytest

from experiments.cifar_width_sweep import run
from experiments.cifar_width_sweep.image_training import ImageTraining
from experiments.cifar_width_sweep.run import cifar_sweep
from kernelmem.core.errors import InputError
from kernelmem.double_descent import Execution, SweepOptions

TRAINING = ImageTraining(epochs=2, batch_size=16, lr=1e-3, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("cifar"), np.random.default_rng(0)
    for name, n in (("data_batch_1", 40), ("test_batch", 20)):
        labels = np.arange(n, dtype=np.uint8) % 10
        pixels = rng.integers(0, 200, (n, 3072), dtype=np.uint8) + labels[:, None] * 5
        (path / f"{name}.bin").write_bytes(np.concatenate([labels[:, None], pixels], 1).astype(np.uint8).tobytes())
    return path


@pytest.mark.soak
@pytest.mark.parametrize("family", ["resnet18", "cnn"])
def test_a_sweep_of_widths_runs_and_resumes(folder, tmp_path, family, monkeypatch):
    options = {"family": family, "widths": (1, 2), "training": TRAINING, "n_seeds": 2}
    options["execution"] = Execution(out=tmp_path)
    found = cifar_sweep(folder, **options)
    assert found.axis == (1.0, 2.0)
    assert found.curves.test_error.shape == (2, 2)
    assert bool(((found.curves.test_error >= 0) & (found.curves.test_error <= 1)).all())
    assert len(list((tmp_path / "chunks").iterdir())) == 6  # each network is kept by itself
    again = []
    repeated = cifar_sweep(folder, **options, progress=lambda done, total: again.append((done, total)))
    assert again == [(6, 6)]  # nothing is trained twice
    assert repeated.curves.test_loss.tolist() == found.curves.test_loss.tolist()
    again.clear()
    longer = options | {"training": replace(TRAINING, epochs=3), "n_seeds": 1, "options": SweepOptions(control=0)}
    cifar_sweep(folder, **longer, progress=lambda done, total: again.append((done, total)))
    assert again[0] == (0, 2)  # another training is another network
    monkeypatch.setattr("kernelmem.double_descent.sweeps.jobs.EVALUATION_BATCH_SIZE", 7)  # the last part is smaller
    parts = cifar_sweep(
        folder, **options | {"execution": Execution(), "n_seeds": 1, "options": SweepOptions(control=0)}
    )
    assert parts.curves.test_loss[0].tolist() == pytest.approx(found.curves.test_loss[0].tolist(), rel=1e-5)


def test_an_unknown_family_and_an_empty_folder_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="family"):
        cifar_sweep(folder, family="vgg")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="CIFAR"):
        cifar_sweep(tmp_path)


@pytest.mark.soak
def test_the_command_writes_its_files(folder, tmp_path, monkeypatch):
    small = {"widths": (1, 2), "n_seeds": 1, "training": ImageTraining(epochs=1, batch_size=10)}
    monkeypatch.setattr(run, "QUICK", small)
    run.run(run.Options(folder, out=tmp_path, device="cpu"))
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert json.loads((tmp_path / "summary.json").read_text())["axis"] == [1, 2]
