"""kernelmem.core.models.float32: analyses do not use TF32, whatever the user allows, and leave torch's settings alone."""

import threading

import pytest
import torch
from torch import nn

from kernelmem.core.models.float32 import float32_products, full_float32, with_float32_products
from kernelmem.core.models.torch_func import standard_modes
from kernelmem.kernels import ntk
from kernelmem.recording.replay import replay
from kernelmem.recording.run import Run
from kernelmem.recording.trainers.fit import FitOptions, fit


@pytest.fixture
def allowed():
    """TF32 everywhere, as a user may set it."""
    with with_float32_products(["tf32"] * 3):
        yield


class Watched(nn.Linear):
    """A layer that notes the settings in which it is called."""

    seen: list[list[str]] = []  # noqa: RUF012  of all copies

    def forward(self, x):
        self.seen.append(float32_products())
        return super().forward(x)


def test_kernels_are_computed_without_tf32(allowed):
    Watched.seen.clear()
    ntk(Watched(3, 2), torch.randn(4, 3))
    assert Watched.seen
    assert all(settings == ["ieee"] * 3 for settings in Watched.seen)
    assert float32_products() == ["tf32"] * 3


def test_settings_are_restored_after_errors_and_nested_blocks(allowed):
    def fail():
        assert float32_products() == ["ieee"] * 3
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), standard_modes(), standard_modes():
        fail()
    assert float32_products() == ["tf32"] * 3


def test_the_last_thread_that_leaves_restores_them(allowed):
    entered, leave = threading.Event(), threading.Event()
    during = []

    def other():
        with full_float32:
            entered.set()
            leave.wait(10)
            during.append(float32_products())

    thread = threading.Thread(target=other)
    with full_float32:
        thread.start()
        assert entered.wait(10)
    assert float32_products() == ["ieee"] * 3
    leave.set()
    thread.join()
    assert during == [["ieee"] * 3]
    assert float32_products() == ["tf32"] * 3


def test_replay_uses_the_settings_of_the_recording(tmp_path):
    x, y = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    with with_float32_products(["ieee", "tf32", "ieee"]):
        options = FitOptions(batch_size=4, keep=100)
        fit(Watched(3, 2), x, y, out=tmp_path / "run", epochs=2, seed=0, options=options)
    Watched.seen.clear()
    with standard_modes():
        list(replay(Run.open(tmp_path / "run"), Watched(3, 2)))
    assert Watched.seen
    assert all(settings == ["ieee", "tf32", "ieee"] for settings in Watched.seen)
