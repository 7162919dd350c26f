"""kernelmem.recording.trainers.optimizer_hook and indexed_dataset: loops of other libraries, and positions in their batches."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from kernelmem.core.errors import InputError
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.run import Run
from kernelmem.recording.trainers.indexed_dataset import Indexed, position_in
from kernelmem.recording.trainers.optimizer_hook import OptimizerHook


@pytest.mark.parametrize("schedules", ["none", "before", "after", "both"])
def test_steps_with_closures_are_recorded_under_any_wrapper(lab, schedules):
    def train(recorded):
        model = lab.network(torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def scheduler():
            return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

        made = [scheduler()] if schedules in ("before", "both") else []
        options = {"loss": "cross_entropy"}
        recorder = Recorder(model, optimizer, lab.directory / "run", **options) if recorded else None
        if recorder is not None:
            recorder.__enter__()
        first = vars(optimizer).get("step")
        hook = None if recorder is None else OptimizerHook(recorder, optimizer)
        ours = vars(optimizer).get("step")
        made += [scheduler()] if schedules in ("after", "both") else []
        for t in range(4):
            index, x, y = lab.batch(t, torch.float64)
            if hook is not None:
                hook.add_batch(index, x, y)

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss

            with torch.no_grad():  # as torch's optimizers do, the closure runs with gradients
                assert optimizer.step(closure) is not None or recorded
            for one in made:
                one.step()
        if hook is not None:
            last = vars(optimizer)["step"]
            assert (last is ours) == (schedules != "after")
            hook.detach()
            assert vars(optimizer).get("step") is (first if last is ours else last)
            recorder.__exit__(None, None, None)
        optimizer.zero_grad()
        optimizer.step()  # its own again
        return model

    plain, recorded = train(False), train(True)
    assert lab.same([recorded.state_dict()], [plain.state_dict()])
    run = Run.open(lab.directory / "run")
    assert len(run) == 4
    assert (run.steps[3].groups[0]["lr"] < 0.1) == (schedules != "none")


def test_added_batches_belong_to_one_step(lab):
    model = lab.network(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        hook = OptimizerHook(recorder, optimizer)
        index, x, y = lab.batch(0, torch.float64)
        with pytest.raises(InputError, match="without a batch"):
            optimizer.step()
        parts = [slice(0, 1), slice(1, 4), slice(4, 6)]
        for part in parts:
            (F.cross_entropy(model(x[part]), y[part]) / 3).backward()
            hook.add_batch(index[part].tolist(), (x[part],), y[part])
        hook.clear()
        with pytest.raises(InputError, match="without a batch"):
            optimizer.step()
        for part in parts:
            hook.add_batch(index[part].numpy(), x[part], y[part])
        optimizer.step()
        with pytest.raises(InputError, match="without a batch"):
            optimizer.step()
        assert pickle.loads(pickle.dumps(hook)) is None
        hook.detach()
        assert "step" not in vars(optimizer)
    run = Run.open(lab.directory / "run")
    (step,) = run.steps
    assert torch.equal(step.examples, index)
    assert step.sample_weight.tolist() == pytest.approx([2, 2 / 3, 2 / 3, 2 / 3, 1, 1])
    assert step.scale == pytest.approx(1, abs=1e-12)


def test_micro_batches_of_trees_are_concatenated(lab):
    model = lab.network(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"loss": "cross_entropy", "forward": lambda model, batch: model(batch["x"][0])}
    with Recorder(model, optimizer, lab.directory / "run", **options) as recorder:
        hook = OptimizerHook(recorder, optimizer)
        index, x, y = lab.batch(0, torch.float64)
        for part in (slice(0, 3), slice(3, 6)):
            (F.cross_entropy(model(x[part]), y[part]) / 2).backward()
            hook.add_batch(index[part], {"x": (x[part],)}, y[part])
        optimizer.step()
        hook.detach()
    assert torch.equal(Run.open(lab.directory / "run").batch(0)[0]["x"][0], x)


def test_positions_of_items():
    whole = TensorDataset(torch.arange(7.0), torch.arange(7) % 2)
    assert [item[0] for item in Indexed(whole)] == list(range(7))
    part = Subset(Subset(whole, [6, 4, 2, 0]), torch.tensor([3, 1]))
    assert [tuple(map(float, item)) for item in Indexed(part)] == [(0, 0, 0), (4, 4, 0)]
    assert len(Indexed(part)) == 2
    assert Indexed([{"x": 1}])[0] == (0, {"x": 1})
    assert Indexed([[1, 2]])[0] == (0, 1, 2)
    assert position_in(ConcatDataset([part, whole]), 5) == 5


def test_a_copy_of_the_model_has_a_hook_that_does_nothing(lab):
    model = lab.network(torch.float64, dropout=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            other(torch.zeros(2, 4, dtype=torch.float64))
            assert recorder._observer.random is None
        model(torch.zeros(2, 4, dtype=torch.float64))
        assert recorder._observer.random is not None
