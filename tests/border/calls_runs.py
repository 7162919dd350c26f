"""Valid calls of recording, trajectory, auditing, and what analyzes a recorded run."""

import tempfile
from functools import cache
from pathlib import Path

import torch

import kernelmem as km
from kernelmem import kernel_machines, recording, trajectory
from kernelmem.double_descent import variance
from tests.border.calls_kernels import X, Y, model
from tests.border.driver import Call

MODEL = model()
TEST = X[:2] + 0.1
FEW = 0.5


@cache
def run() -> km.Run:
    """Three recorded steps of SGD."""
    options = km.FitOptions(batch_size=2, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    return km.fit(model(), X, Y, out=new_directory(), epochs=2, seed=0, options=options)


def new_directory() -> Path:
    return Path(tempfile.mkdtemp()) / "run"


def of_run(**arguments: object) -> dict[str, object]:
    return {"run": run(), "model": MODEL, "x": TEST, **arguments}


def targets() -> dict[str, object]:
    return {"target": None, "labels": None, "loss": None, "forward": None, "progress": False}


def record(
    model: object,
    optimizer: object,
    loss: object,
    reduction: object,
    keep: object,
    tolerance: object,
    forward: object,
    averaged: object,
    index: object,
    x: object,
    y: object,
    sample_weight: object,
    scaler: object,
) -> None:
    """One recorded step."""
    with recording.Recorder(
        model,
        optimizer,
        new_directory(),
        loss=loss,
        reduction=reduction,
        keep=keep,
        tolerance=tolerance,
        forward=forward,
        averaged=averaged,
    ) as recorder:
        torch.nn.functional.cross_entropy(model(X), Y).backward()
        recorder.step(index, x, y, sample_weight, scaler=scaler)


def record_arguments() -> dict[str, object]:
    network = model()
    return {
        "model": network,
        "optimizer": torch.optim.SGD(network.parameters(), lr=0.1),
        "loss": "cross_entropy",
        "reduction": "mean",
        "keep": "all",
        "tolerance": None,
        "forward": None,
        "averaged": None,
        "index": torch.arange(4),
        "x": X,
        "y": Y,
        "sample_weight": None,
        "scaler": None,
    }


@cache
def ledger() -> km.Ledger:
    return km.ledger(run(), MODEL, TEST)


@cache
def influence() -> object:
    return km.influence(run(), MODEL, TEST)


@cache
def exact_machine() -> object:
    return km.exact_kernel_machine(run(), MODEL, TEST)


@cache
def audit() -> km.Audit:
    return km.audit(MODEL, (X, Y), (TEST, Y[:2]))


CALLS = {
    "fit": Call(
        km.fit,
        lambda: (
            {"model": model(), "x": X, "y": Y, "out": new_directory(), "epochs": 1, "seed": 0}
            | {"sample_weight": None, "forward": None, "progress": False}
            | {"options": km.FitOptions(batch_size=2, optimizer=torch.optim.SGD)}
        ),
        changes=frozenset({"model"}),
        examples=0.1,
    ),
    "FitOptions": Call(
        km.FitOptions,
        lambda: (
            {"loss": "mse", "optimizer": None, "batch_size": 2, "schedule": None, "clip": None, "keep": "all"}
            | {"resume": False}
        ),
    ),
    "Recorder": Call(record, record_arguments, changes=frozenset({"model", "optimizer"}), examples=0.5),
    "Run.open": Call(km.Run.open, lambda: {"path": run().path}),
    "Run.batch": Call(lambda **arguments: run().batch(**arguments), lambda: {"t": 0}),
    "Run.weights": Call(lambda **arguments: run().weights(**arguments), lambda: {"t": 0}),
    "Run.checkpoint": Call(lambda **arguments: run().checkpoint(**arguments), lambda: {"t": 0}),
    "logits": Call(recording.logits, lambda: {"model": MODEL, "batch": X}),
    "replay": Call(
        lambda **arguments: list(recording.replay(**arguments)),
        lambda: (
            {"run": run(), "model": model(), "loss": None, "reanchor": False, "start": 0, "stop": None}
            | {"forward": None}
        ),
        changes=frozenset({"model"}),
        examples=0.5,
    ),
    "verify_model": Call(
        recording.verify_model, lambda: {"run": run(), "model": MODEL, "loss": None, "forward": None}, examples=0.5
    ),
    "average_coefficients": Call(recording.average_coefficients, lambda: {"run": run()}),
    "ledger": Call(km.ledger, lambda: of_run(by="example", options=km.LedgerOptions()) | targets(), examples=FEW),
    "LedgerOptions": Call(
        km.LedgerOptions,
        lambda: (
            {"n_nodes": None, "tolerance": 1e-12, "data": None, "steps": None, "final_weights": "last"}
            | {"history": False}
        ),
        undefined=frozenset({"steps"}),  # checked by ledger, which knows the run
    ),
    "Ledger.top": Call(lambda **arguments: ledger().top(**arguments), lambda: {"row": 0, "output": 0, "n": 2}),
    "Ledger.by_group": Call(lambda **arguments: ledger().by_group(**arguments), lambda: {"groups": Y}),
    "influence": Call(
        km.influence, lambda: of_run(method="unrolled", options=km.InfluenceOptions()) | targets(), examples=FEW
    ),
    "self_influence": Call(
        trajectory.self_influence,
        lambda: (
            of_run(method="tracin", options=km.InfluenceOptions())
            | targets()
            | {"x": X, "target": "loss"}
            | {"labels": Y}
        ),
        examples=FEW,
    ),
    "InfluenceOptions": Call(km.InfluenceOptions, lambda: {"data": None, "clip": None, "chunk": None, "replays": 8}),
    "Influence.check": Call(
        lambda **arguments: influence().check(**arguments),
        lambda: of_run(options=km.InfluenceOptions(replays=3)) | targets(),
        examples=0.2,
    ),
    "Influence.top": Call(lambda **arguments: influence().top(**arguments), lambda: {"row": 0, "output": 0, "n": 2}),
    "path_kernel": Call(
        km.path_kernel,
        lambda: (
            of_run(y=None, outputs="trace", options=km.PathKernelOptions(n_nodes=1), target=None, labels=None)
            | {"forward": None, "progress": False}
        ),
        examples=FEW,
        undefined=frozenset({"quadrature_error", "thinning_error"}),
    ),
    "PathKernelOptions": Call(
        km.PathKernelOptions,
        lambda: (
            {"weighting": "mean", "n_nodes": 2, "stride": 1, "loss": None, "dtype": None, "device": None}
            | {"memory": "1GiB", "verify": True}
        ),
    ),
    "exact_kernel_machine": Call(
        km.exact_kernel_machine,
        lambda: of_run(memory="1GiB", quadrature=trajectory.Quadrature(n_nodes=2)) | targets(),
        examples=FEW,
    ),
    "ExactKernelMachine.contributions": Call(
        lambda **arguments: exact_machine().contributions(**arguments), lambda: {"n": None}
    ),
    "domingos_kernel_machine": Call(
        trajectory.domingos_kernel_machine,
        lambda: of_run(data=(X, Y), n_nodes=1, loss=None, forward=None, memory="1GiB"),
        examples=FEW,
    ),
    "Quadrature": Call(trajectory.Quadrature, lambda: {"n_nodes": None, "tolerance": 1e-12}),
    "gauss_legendre": Call(trajectory.gauss_legendre, lambda: {"n": 2}),
    "compare_kernel_machines": Call(
        km.compare_kernel_machines,
        lambda: (
            of_run(data=(X, Y), methods=["sgd_initial", "ridge_initial"], outputs="trace", loss=None)
            | {"forward": None, "progress": False, "options": kernel_machines.ComparisonOptions(checkpoints=2)}
        ),
        examples=0.1,
        undefined=frozenset({"fits", "movement", "kernel_change", "kernel_distance", "limit", "path_error"})
        | {"cancellation"},
    ),
    "run_smoother": Call(
        variance.run_smoother,
        lambda: of_run(data=(X, Y), n_nodes=1, tolerance=1e-6, forward=None, memory="1GiB", progress=False),
        examples=FEW,
    ),
    "audit": Call(
        km.audit,
        lambda: (
            {"model": MODEL, "train": (X, Y), "test": (TEST, Y[:2]), "flipped": None, "forward": None}
            | {"out": None, "seed": 0, "memory": "1GiB", "options": km.AuditOptions(), "progress": False}
        ),
        examples=0.25,
        undefined=frozenset({"document"}),
    ),
    "AuditOptions": Call(
        km.AuditOptions,
        lambda: (
            {"n_classes": 2, "name": "a", "model_name": None, "image_shape": None, "training": "a"}
            | {"reproduce": "a", "extra_files": {}}
        ),
    ),
}
