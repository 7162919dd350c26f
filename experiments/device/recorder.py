"""The Recorder on a device: equal to the CPU in float64, replayed to the bit, with mixed precision, dropout and resuming."""

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernelmem as km
from experiments.device.settings import Sizes, deterministic_convolutions, tf32
from kernelmem.recording import replay
from kernelmem.training import digits

__all__ = ["checks"]

NONDETERMINISTIC = "float32, cuDNN as torch sets it"
OPTIMIZERS: dict[str, Callable] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "SGD fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "Adam foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}


class Training:
    """A recorded training run of a small network with batch normalization on the digits."""

    def __init__(self, device: str, sizes: Sizes, *, dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> None:
        self.device, self.sizes, self.dtype, self.dropout = device, sizes, dtype, dropout
        data = digits(n_train=sizes.digits)
        self.x, self.y = data.x_train.reshape(-1, 1, 8, 8).to(dtype), data.y_train
        self.x_test = data.x_test[:5].reshape(-1, 1, 8, 8).to(dtype)
        self.directory = Path(tempfile.mkdtemp()) / "run"

    def model(self) -> nn.Module:
        """Return the network before training, the same weights on every device."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = [
                nn.Conv2d(1, 8, 3, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Dropout(self.dropout),
                nn.Flatten(),
            ]
            return nn.Sequential(*layers, nn.Linear(288, 10)).to(self.device, self.dtype)

    def record(
        self,
        make_optimizer: Callable,
        *,
        keep: str | int = "sqrt",
        autocast: torch.dtype | None = None,
        scaled: bool = False,
        recorded: bool = True,
        stop: int | None = None,
        resume: bool = False,
    ) -> tuple[dict[str, Tensor], int]:
        """Train, with or without a recorder; return the final state on the CPU and the number of skipped steps."""
        model = self.model()
        optimizer = make_optimizer(model.parameters())
        kind = torch.device(self.device).type
        scaler = torch.amp.GradScaler(kind, init_scale=2.0**14) if scaled else None
        torch.manual_seed(7)
        skipped = 0
        with km.Recorder(
            model, optimizer, self.directory if recorded else Path(tempfile.mkdtemp()) / "unused",
            loss="cross_entropy", keep=keep, resume=resume,
        ) if recorded else _Nothing() as recorder:  # fmt: skip
            start = recorder.restore() if resume else 0
            for t in range(start, self.sizes.steps if stop is None else stop):
                index = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(t))[:20]
                x, y = self.x[index].to(self.device), self.y[index].to(self.device)
                optimizer.zero_grad()
                with torch.autocast(kind, autocast, enabled=autocast is not None):
                    loss = F.cross_entropy(model(x), y)
                (loss if scaler is None else scaler.scale(loss)).backward()
                if scaler is not None and t == 2:
                    next(model.parameters()).grad.view(-1)[0] = torch.inf  # pyright: ignore[reportOptionalMemberAccess]
                if recorded:
                    skipped += not recorder.step(index, x, y, scaler=scaler)
                elif scaler is None:
                    optimizer.step()
                else:
                    scaler.step(optimizer)
                if scaler is not None:
                    scaler.update()
        return {name: value.detach().cpu() for name, value in model.state_dict().items()}, skipped


class _Nothing:
    """Context without a recorder."""

    def __enter__(self) -> "_Nothing":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def restore(self) -> int:
        return 0


def checks(device: str, sizes: Sizes, store: Callable[[dict[str, object]], None]) -> None:
    """Run every check, and store its results or its error by name."""
    results: dict[str, object] = {}
    cases: dict[str, Callable[[], object]] = {
        **{
            f"{name} float64": lambda make=make: _equal_to_cpu(device, sizes, make) for name, make in OPTIMIZERS.items()
        },
        "dropout float32": lambda: _repeats(
            Training(device, sizes, dtype=torch.float32, dropout=0.3), OPTIMIZERS["SGD"]
        ),
        "tf32": lambda: _repeats(Training(device, sizes, dtype=torch.float32), OPTIMIZERS["SGD"], uses_tf32=True),
        **{
            f"{name} {str(dtype)[6:]}": lambda make=make, dtype=dtype: _repeats(
                Training(device, sizes, dtype=torch.float32), make, autocast=dtype, scaled=dtype == torch.float16
            )
            for name, make in OPTIMIZERS.items()
            for dtype in (torch.bfloat16, torch.float16)
        },
        "resume float32": lambda: _resumed(device, sizes),
        NONDETERMINISTIC: lambda: _repeats(Training(device, sizes, dtype=torch.float32), OPTIMIZERS["SGD"]),
    }
    if sizes.quick:
        cases = {name: cases[name] for name in ("AdamW fused float64", "SGD fused float16")}
    for name, case in cases.items():
        try:
            with nullcontext() if name == NONDETERMINISTIC else deterministic_convolutions():
                results[name] = case()
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"[:400]
        store(results)


def _largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Return the largest |a - b| over max |a| of the tensors of two states."""
    return max(
        float(
            (first[name].double() - second[name].double()).abs().max()
            / first[name].double().abs().max().clamp_min(1e-30)
        )
        for name in first
    )


def _equal_to_cpu(device: str, sizes: Sizes, make: Callable) -> dict[str, object]:
    """Record the same training on the CPU and on the device, and compare weights and ledgers."""
    runs, states = [], []
    for place in ("cpu", device):
        training = Training(place, sizes)
        states.append(training.record(make)[0])
        runs.append((km.Run.open(training.directory), training))
    (cpu_run, _), (run, training) = runs
    run.verify()
    replayed = sum(1 for _ in replay(run, training.model()))  # compares every state with its hash
    cpu_ledger = km.ledger(cpu_run, Training("cpu", sizes).model(), training.x_test)
    ledger = km.ledger(run, training.model(), training.x_test)
    return {
        "weights": _largest_difference(*states),
        "contributions": _largest_difference({"": cpu_ledger.contributions}, {"": ledger.contributions}),
        "replayed states": replayed,
        "steps compared to the bit": sum(step.exact for step in run.steps),
        "device": run.meta["device_name"],
        "closed": ledger.closed,
    }


def _repeats(
    training: Training,
    make: Callable,
    *,
    autocast: torch.dtype | None = None,
    scaled: bool = False,
    uses_tf32: bool = False,
) -> dict[str, object]:
    """Record, compare with the same training without a recorder, and replay."""
    with tf32(uses_tf32):
        plain, _ = training.record(make, autocast=autocast, scaled=scaled, recorded=False)
        state, skipped = training.record(make, autocast=autocast, scaled=scaled)
        run = km.Run.open(training.directory)
        replayed = sum(1 for _ in replay(run, training.model()))
    results: dict[str, object] = {
        "same as without a recorder": all(torch.equal(plain[name], state[name]) for name in plain),
        "steps": len(run),
        "skipped": skipped,
        "replayed states": replayed,
        "steps compared to the bit": sum(step.exact for step in run.steps),
    }
    try:
        ledger = km.ledger(run, training.model(), training.x_test)
        change = float((ledger.final - ledger.initial).abs().max())
        results["ledger: rounding / change"] = float(ledger.rounding.abs().max()) / change
        results["ledger: residual / change"] = ledger.largest_residual / change
        results["ledger: closed"] = ledger.closed
    except km.KernelmemError as error:
        results["ledger"] = f"refused: {error}"[:300]
    return results


def _resumed(device: str, sizes: Sizes) -> dict[str, object]:
    """Interrupt a run with dropout, resume it, and compare with the uninterrupted one."""
    make = OPTIMIZERS["AdamW fused"]
    whole = Training(device, sizes, dtype=torch.float32, dropout=0.2).record(make, keep=3)[0]
    training = Training(device, sizes, dtype=torch.float32, dropout=0.2)
    training.record(make, keep=3, stop=sizes.steps // 2)
    resumed = training.record(make, keep=3, resume=True)[0]
    return {"same weights": all(torch.equal(whole[name], resumed[name]) for name in whole)}
