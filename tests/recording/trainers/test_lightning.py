"""kernelmem.recording.trainers.lightning: training with Lightning is recorded, replayed and explained by the ledger."""

import logging
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

from kernelmem.core.errors import InputError
from kernelmem.recording.replay import replay
from kernelmem.recording.run import Run
from kernelmem.recording.trainers.indexed_dataset import Indexed
from kernelmem.trajectory.ledger.ledger import ledger

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip("lightning.pytorch")
    from kernelmem.recording.trainers.lightning import LightningRecorder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(num_workers|bottleneck|logging interval|LeafSpec|litlogger|tip).*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Classifier(lightning.LightningModule):
    def __init__(self, net, *, schedule=False, loss=F.cross_entropy):
        super().__init__()
        self.net, self.schedule, self.loss = net, schedule, loss

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        _, x, y = batch
        return self.loss(self(x), y)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        if not self.schedule:
            return optimizer
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def data(n=20):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return TensorDataset(x, torch.randint(3, (n,), generator=generator))


def fit(module, recorder=None, *, dataset=None, batch_size=6, **options):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = ("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger")
    callbacks = [] if recorder is None else [recorder]
    options = {"max_epochs": 2, "accelerator": "cpu", "precision": "64-true", **dict.fromkeys(quiet, False), **options}
    trainer = lightning.Trainer(callbacks=callbacks, **options)
    generator = torch.Generator().manual_seed(5)
    dataset = Indexed(data()) if dataset is None else dataset
    trainer.fit(module, DataLoader(dataset, batch_size=batch_size, shuffle=True, generator=generator))
    return trainer


CASES = {
    "plain": {},
    "clipped": {"gradient_clip_val": 0.1},
    "accumulated": {"accumulate_grad_batches": 3},
    "ragged": {"accumulate_grad_batches": 4, "gradient_clip_val": 0.2},
}


@pytest.mark.parametrize("case", CASES)
def test_recording_does_not_change_the_training_and_the_ledger_explains_it(lab, case):
    torch.manual_seed(0)
    plain = Classifier(lab.network(torch.float64), schedule=True)
    fit(plain, **CASES[case])
    module = Classifier(lab.network(torch.float64), schedule=True)
    recorder = LightningRecorder(lab.directory / "run", loss="cross_entropy", module="net")
    trainer = fit(module, recorder, **CASES[case])
    assert lab.same([module.state_dict()], [plain.state_dict()])
    run = Run.open(lab.directory / "run")
    run.verify()
    assert len(run) == trainer.global_step
    assert run.parameters == ("0.weight", "0.bias", "2.weight", "2.bias")
    x, y = data().tensors
    for step in run.steps:
        given_x, given_y = run.batch(step.index)
        assert torch.equal(given_x, x[step.examples])
        assert torch.equal(given_y, y[step.examples])
    assert torch.cat([step.examples for step in run.steps]).bincount().tolist() == [2] * 20
    assert len({step.groups[0]["lr"] for step in run.steps}) > 1
    assert (run.steps[0].scale < 1) == ("gradient_clip_val" in CASES[case])
    weighted = [step for step in run.steps if not bool((step.sample_weight == 1).all())]
    assert bool(weighted) == (case == "ragged")  # batches of 6, 6, 6 and 2 rows in one step
    if case == "accumulated":  # what is left over at the end of an epoch is divided by 3 all the same
        assert [step.scale for step in run.steps] == pytest.approx([1.0, 1 / 3] * 2)
    account = ledger(run, module.net, x[:5])
    assert account.largest_residual <= 1e-10
    assert float((account.final - module.net(x[:5]).detach()).abs().max()) <= 1e-12
    assert float((account.final - account.initial).abs().max()) > 1e-3


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_whole_module_float32_dropout_and_replay(lab, precision):
    dataset = Indexed(Subset(TensorDataset(data().tensors[0].float(), data().tensors[1]), range(19, 4, -1)))
    module = Classifier(lab.network(dropout=0.4))
    recorder = LightningRecorder(lab.directory / "run", loss="cross_entropy", keep=100)
    fit(module, recorder, dataset=dataset, precision=precision)
    run = Run.open(lab.directory / "run")
    run.verify()
    assert run.parameters[0] == "net.0.weight"
    assert {step.autocast for step in run.steps} == {"bfloat16" if precision == "bf16-mixed" else None}
    assert torch.cat([step.examples for step in run.steps]).unique().tolist() == list(range(5, 20))
    assert all(step.random is not None for step in run.steps)
    *_, (_, weights) = replay(run, Classifier(lab.network(dropout=0.4)))
    assert all(torch.equal(weights[name], value) for name, value in module.state_dict().items())
    assert not module._forward_pre_hooks
    assert "step" not in vars(module.trainer.optimizers[0])


def test_other_batches_through_unpack_and_forward(lab):
    class Dicts(Classifier):
        def training_step(self, batch, _):
            return F.cross_entropy(self.net(batch["x"]), batch["y"])

    rows = [{"i": i, "x": x, "y": y} for i, (x, y) in enumerate(zip(*data().tensors, strict=True))]
    recorder = LightningRecorder(
        lab.directory / "run",
        loss="cross_entropy",
        module="net",
        unpack=lambda batch: (batch["i"], {"x": batch["x"]}, batch["y"]),
        forward=lambda net, batch: net(batch["x"]),
    )
    fit(Dicts(lab.network(torch.float64)), recorder, dataset=rows)
    run = Run.open(lab.directory / "run")
    assert len(run) == 8
    assert set(run.batch(0)[0]) == {"x"}


class Manual(Classifier):
    automatic_optimization = False


class TwoOptimizers(Classifier):
    automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD([p], lr=0.1) for p in (self.net[0].weight, self.net[2].weight)]


def squared(f, y):
    return (f - F.one_hot(y, 3)).square().mean()


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (Manual, {}, "manual optimization.*automatic_optimization=True.*Recorder"),
        (TwoOptimizers, {}, "manual optimization"),
        (Classifier, {"precision": "16-true"}, "precision 16-true"),
        (Classifier, {"dataset": data()}, r"a batch of type list and length 2; expected \(index, x, y\)"),
        (lambda net: Classifier(net, loss=squared), {}, "largest mismatch"),
        (Classifier, {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"}, "largest mismatch"),
    ],
)
def test_what_cannot_be_recorded_is_refused(lab, make, options, words):
    dtype = torch.float32 if "16" in str(options) else torch.float64
    module = make(lab.network(dtype))
    with pytest.raises(InputError, match=words):
        fit(module, LightningRecorder(lab.directory / "run", loss="cross_entropy"), **options)
    assert not module._forward_pre_hooks
    if (lab.directory / "run").exists():
        run = Run.open(lab.directory / "run")
        run.verify()
        assert len(run) == 0


def test_a_missing_submodule_is_refused(lab):
    with pytest.raises(InputError, match=r"module='encoder'.*a part of Classifier: net"):
        fit(Classifier(lab.network()), LightningRecorder(lab.directory / "run", loss="cross_entropy", module="encoder"))


def test_a_resumed_training_is_refused(lab):
    module = Classifier(lab.network(torch.float64))
    trainer = fit(module)
    trainer.save_checkpoint(lab.directory / "one.ckpt")
    again = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[LightningRecorder(lab.directory / "run", loss="cross_entropy")],
    )
    with pytest.raises(InputError, match=r"starts at step 8.*ckpt_path"):
        again.fit(module, DataLoader(Indexed(data()), batch_size=6), ckpt_path=lab.directory / "one.ckpt")


def test_an_error_in_the_training_leaves_a_run_that_ends_there(lab):
    class Failing(Classifier):
        def training_step(self, batch, i):
            if self.global_step == 3:
                raise ZeroDivisionError
            return super().training_step(batch, i)

    module = Failing(lab.network(torch.float64))
    with pytest.raises(ZeroDivisionError):
        fit(module, LightningRecorder(lab.directory / "run", loss="cross_entropy", keep=100))
    run = Run.open(lab.directory / "run")
    run.verify()
    assert run.kept == (0, 3)


def test_a_batch_that_the_module_skips_is_dropped(lab):
    class Skipping(Classifier):
        def on_train_batch_start(self, batch, i):
            return -1 if (self.current_epoch, i) == (0, 2) else None

    fit(Skipping(lab.network(torch.float64)), LightningRecorder(lab.directory / "run", loss="cross_entropy"))
    run = Run.open(lab.directory / "run")
    assert [len(step.examples) for step in run.steps] == [6, 6, 6, 6, 6, 2]


def test_neither_library_is_imported_by_kernelmem():
    code = "import sys, kernelmem, kernelmem.recording.recorder, kernelmem.recording.trainers.fit;"
    code += "assert not {'lightning', 'pytorch_lightning', 'skorch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
