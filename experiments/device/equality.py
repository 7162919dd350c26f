"""Public functions that take a model: largest relative difference between a device and the CPU in float64."""

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import kernelmem as km
from experiments.device.settings import Sizes, tf32
from kernelmem import double_descent
from kernelmem.memorization import training_dynamics
from kernelmem.recording import replay, verify_model
from kernelmem.training import EnsembleOptions, Member, Recipe, digits, train_classifier, train_mlps
from kernelmem.trajectory import domingos_kernel_machine

__all__ = ["CASES", "differences"]

OUTPUTS = ("trace", "full", "diagonal", "pseudo")
QUICK = ("ntk trace", "train_mlps")


class Place(NamedTuple):
    """Where and in which dtype a case computes."""

    device: str
    dtype: torch.dtype
    sizes: Sizes

    def model(self) -> nn.Module:
        """A small convolutional network, the same weights everywhere."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Flatten(), nn.LayerNorm(288), nn.Linear(288, 10)
            return nn.Sequential(*layers).to(self.device, self.dtype).eval()

    def mlp(self) -> nn.Module:
        """A small multilayer perceptron of the digits."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)
            return nn.Sequential(*layers).to(self.device, self.dtype).eval()

    def x(self) -> Tensor:
        """Normal rows on the CPU, which the functions copy to the model."""
        rows = torch.randn(self.sizes.rows, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return rows.to(self.dtype)

    def y(self) -> Tensor:
        """Labels of the rows."""
        return torch.arange(self.sizes.rows) % 10

    def digits(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Training rows and labels, test rows and labels."""
        data = digits(n_train=self.sizes.digits)
        test = data.x_test[: self.sizes.rows].flatten(1).to(self.dtype), data.y_test[: self.sizes.rows]
        return data.x_train.flatten(1).to(self.dtype), data.y_train, *test

    def run(self) -> km.Run:
        """A run that was recorded on the CPU in this dtype, the same for every device."""
        return _recorded(self.sizes, self.dtype)


@cache
def _recorded(sizes: Sizes, dtype: torch.dtype, momentum: float = 0.9) -> km.Run:
    place = Place("cpu", dtype, sizes)
    x, y, *_ = place.digits()
    options = km.FitOptions(batch_size=30, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=momentum))
    return km.fit(place.mlp(), x, y, out=Path(tempfile.mkdtemp()) / "run", epochs=2, seed=0, options=options)


def _classifier(place: Place) -> Tensor:
    x, y, x_test, _ = place.digits()
    machine = km.KernelMachineClassifier(km.TangentKernel(place.mlp()), ridge=1.0).fit(x.numpy(), y.numpy())
    return torch.as_tensor(machine.decision_function(x_test.numpy()))


def _vector_machine(place: Place) -> Tensor:
    x, y, x_test, _ = place.digits()
    machine = km.KernelMachineSVC(km.TangentKernel(place.mlp())).fit(x.numpy(), y.numpy() % 2)
    return torch.as_tensor(machine.decision_function(x_test.numpy()))


def _gaussian_process(place: Place) -> Tensor:
    x, y, x_test, _ = place.digits()
    machine = km.KernelMachineGP(km.TangentKernel(place.mlp()), ridge=1.0).fit(x.numpy(), y.numpy().astype(float))
    return torch.as_tensor(np.asarray(machine.predict(x_test.numpy(), return_std=True)))


def _leave_one_out(place: Place) -> Tensor:
    x, y, *_ = place.digits()
    return km.leave_one_out(km.ntk(place.mlp(), x), y, ridge=1.0).predictions


def _spectrum(place: Place) -> Tensor:
    return km.spectrum(km.ntk(place.model(), place.x())).eigenvalues


def _margins(place: Place) -> Tensor:
    x, y, x_test, y_test = place.digits()
    audit = km.audit(place.mlp(), (x, y), (x_test, y_test))
    return torch.as_tensor(audit.to_frame()["loo_margin"].to_numpy().copy())


def _trained(place: Place) -> Tensor:
    """Test losses of three networks that were trained on the device."""
    x, y, x_test, y_test = place.digits()
    members = [Member(width, torch.arange(len(x)), y, 1, 1) for width in (4, 16, 64)]
    recipe = Recipe(lr=0.01, batch_size=30, steps=place.sizes.steps)
    options = EnsembleOptions(dtype=place.dtype, device=place.device, n_classes=10)
    ensemble = train_mlps(members, x, test=(x_test, y_test), recipe=recipe, options=options)
    return torch.as_tensor(ensemble.metrics[-1].test_loss)


def _shadows(place: Place) -> Tensor:
    x, y, *_ = place.digits()
    training = km.EnsembleTraining(Recipe(lr=0.01, batch_size=30, steps=place.sizes.steps), width=16)
    options = km.ShadowOptions(n_models=4, device=place.device)
    return torch.as_tensor(km.shadow_ensemble((x, y), training, options=options).logits)


def _sweep(place: Place) -> Tensor:
    data = digits(n_train=place.sizes.digits)
    execution = double_descent.Execution(device=place.device, dtype=place.dtype)
    recipe = Recipe(lr=0.01, batch_size=30, steps=place.sizes.steps)
    sweep = double_descent.sweep(
        data, "width", [2, 8, 32], recipe=recipe, n_seeds=2, execution=execution, progress=False
    )
    return torch.as_tensor(sweep.to_frame()["test_loss"].to_numpy(dtype=float).copy())


def _classifier_training(place: Place) -> Tensor:
    x, y, x_test, _ = place.digits()
    model = place.mlp()
    train_classifier(model, x, y, epochs=2, seed=0)
    with torch.no_grad():
        return model(x_test.to(place.device))


def _fit(place: Place) -> Tensor:
    x, y, x_test, _ = place.digits()
    model = place.mlp()
    options = km.FitOptions(batch_size=30, optimizer=lambda p: torch.optim.AdamW(p, lr=0.01), clip=1.0)
    km.fit(model, x, y, out=Path(tempfile.mkdtemp()) / "run", epochs=2, seed=0, options=options)
    with torch.no_grad():
        return model(x_test.to(place.device))


def _of_run(function: Callable[[km.Run, nn.Module, Tensor], Tensor]) -> Callable[[Place], Tensor]:
    """A case that analyzes the run which was recorded on the CPU, with its model on the device."""
    return lambda place: function(place.run(), place.mlp(), place.digits()[2][:5])


def _history(run: km.Run, model: nn.Module, x: Tensor) -> Tensor:
    return training_dynamics.training_history(run, model, x, torch.arange(len(x)) % 10).logits


def _domingos(place: Place) -> Tensor:
    x, y, x_test, _ = place.digits()
    run = _recorded(place.sizes, place.dtype, momentum=0.0)
    return domingos_kernel_machine(run, place.mlp(), x_test[:5], data=(x, y)).predictions


def _compared(place: Place) -> Tensor:
    x, y, x_test, _ = place.digits()
    methods = ["ridge_final", "sgd_initial"]
    comparison = km.compare_kernel_machines(place.run(), place.mlp(), x_test[:5], data=(x, y), methods=methods)
    return torch.cat([torch.as_tensor(comparison.predictions[name]).flatten() for name in methods])


def _self_influence(place: Place) -> Tensor:
    x, y, *_ = place.digits()
    score = training_dynamics.self_influence_score(place.run(), place.mlp(), x, y, method="last")
    return torch.as_tensor(score.values)


def _predicted_curve(place: Place) -> Tensor:
    x, y, *_ = place.digits()

    def make_model(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10)).to(place.device, place.dtype)

    curve = double_descent.predict_curve(make_model, (x, y), widths=16, samples=[10, 20], seeds=(0, 1))
    return torch.as_tensor(curve.to_frame().select_dtypes("number").to_numpy(dtype=float).copy()).nan_to_num()


def _depth(place: Place) -> Tensor:
    score = training_dynamics.prediction_depth(place.model(), place.x(), place.y(), k=3)
    return torch.as_tensor(score.values, dtype=torch.float64)


def _replayed(run: km.Run, model: nn.Module, x: Tensor) -> Tensor:
    verify_model(run, model)
    *_, (_, weights) = replay(run, model, reanchor=True)
    return torch.cat([value.flatten() for value in weights.values()])


class RecurrentModel(nn.Module):
    """Language model with one LSTM layer."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embedding, self.output = nn.Embedding(40, 16), nn.Linear(64, 40)
            self.recurrent = nn.LSTM(16, 64, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        return self.output(self.recurrent(self.embedding(ids))[0])


def _token_bits(place: Place) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    documents = [torch.randint(40, (n,), generator=generator) for n in (2, 17, 64, 200)]
    model = RecurrentModel().to(place.device)
    return torch.cat(list(km.text.token_losses(km.text.causal_lm(model), documents, dtype=place.dtype).bits))


CASES: dict[str, Callable[[Place], Tensor]] = {
    **{
        f"ntk {outputs}": lambda place, outputs=outputs: km.ntk(place.model(), place.x(), outputs=outputs)
        for outputs in OUTPUTS
    },
    "ntk target=margin": lambda p: km.ntk(p.model(), p.x(), target="margin", labels=p.y()),
    "ntk_operator": lambda p: (
        km.ntk_operator(p.model(), p.x()) @ torch.linspace(-1, 1, p.sizes.rows, dtype=p.dtype, device=p.device)
    ),
    "tangent_features": lambda p: km.tangent_features(p.model(), p.x(), 128, seed=0),
    "spectrum": _spectrum,
    "leave_one_out": _leave_one_out,
    "KernelMachineClassifier": _classifier,
    "KernelMachineSVC": _vector_machine,
    "KernelMachineGP": _gaussian_process,
    "audit loo_margin": _margins,
    "account left-out bits": lambda p: km.account(p.mlp(), p.digits()[:2]).left_out_rows,
    "prediction_depth": _depth,
    "fit": _fit,
    "train_classifier": _classifier_training,
    "train_mlps": _trained,
    "shadow_ensemble": _shadows,
    "double_descent.sweep": _sweep,
    "token_losses": _token_bits,
    "replay": _of_run(_replayed),
    "ledger": _of_run(lambda run, model, x: km.ledger(run, model, x).contributions),
    "ledger by layer": _of_run(lambda run, model, x: km.ledger(run, model, x, by="layer").contributions),
    "influence": _of_run(lambda run, model, x: km.influence(run, model, x).influence),
    "path_kernel": _of_run(lambda run, model, x: km.path_kernel(run, model, x).values),
    "exact_kernel_machine": _of_run(lambda run, model, x: km.exact_kernel_machine(run, model, x).predictions),
    "domingos_kernel_machine": _domingos,
    "compare_kernel_machines": _compared,
    "self_influence_score": _self_influence,
    "predict_curve": _predicted_curve,
    "training_history": _of_run(_history),
}
"""Case by name: maps a place to a tensor of the results. Data are passed on the CPU, the model is on the device."""


def differences(device: str, sizes: Sizes, store: Callable[[dict[str, dict[str, object]]], None]) -> None:
    """Compute every case in float64, float32 and, on CUDA, TF32, and store max |a - b| / max |a| for a on the CPU.

    a is the result in float64. The column "cpu float32" says what float32 alone does.
    """
    columns: list[tuple[str, str, torch.dtype, bool]] = [
        ("float64", device, torch.float64, False),
        ("float32", device, torch.float32, False),
        ("cpu float32", "cpu", torch.float32, False),
    ]
    if device.startswith("cuda"):
        columns.insert(2, ("tf32", device, torch.float32, True))
    table: dict[str, dict[str, object]] = {}
    for name, case in CASES.items():
        if sizes.quick and name not in QUICK:
            continue
        row: dict[str, object] = {}
        table[name] = row
        try:
            exact = _on_cpu(case(Place("cpu", torch.float64, sizes)))
        except Exception as error:
            table[name] = {"cpu float64": _describe(error)}
            continue
        for column, place, dtype, uses_tf32 in columns:
            try:
                with tf32(uses_tf32):
                    value = _on_cpu(case(Place(place, dtype, sizes)))
                row[column] = float((value - exact).abs().max() / exact.abs().max())
            except Exception as error:
                row[column] = _describe(error)
        store(table)


def _on_cpu(value: object) -> Tensor:
    return torch.as_tensor(value).detach().to("cpu", torch.float64)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
