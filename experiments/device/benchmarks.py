"""Time and memory on a device compared with torch.func: kernels, ensembles, double descent, ledgers."""

import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import kernelmem as km
from experiments.benchmarks.ensemble.configs import SEEDS, WIDTHS
from experiments.benchmarks.ensemble.engines import ENGINES, problem
from experiments.benchmarks.ntk.workloads import build
from experiments.device.settings import Sizes, median_seconds, peak_bytes, reset_peak, synchronize, tf32
from kernelmem import double_descent
from kernelmem.training import Recipe, digits

__all__ = ["ensembles", "kernels", "ledgers", "memory", "sweeps"]

Store = Callable[[dict[str, dict[str, object]]], None]
CHUNK = {"W1": 256, "W2": 64, "W3": 16, "W4": 64, "vit": 16}  # examples whose Jacobian is computed at once
LARGEST_SHARE = 0.6  # of the memory of the device that a Jacobian may take


def kernels(device: str, sizes: Sizes, store: Store) -> None:
    """Time km.ntk and torch.func on the workloads of the kernel benchmark, in float32 without TF32."""
    table: dict[str, dict[str, object]] = {}
    for name, (n, outputs) in sizes.kernels.items():
        row: dict[str, object] = {"n": n}
        table[name] = row
        model, x = build(name.split()[0], n)
        model, x = model.to(device), x.to(device)
        with tf32(False):
            ours = _measure(row, "ours", lambda: km.ntk(model, x, outputs=outputs, verify=False), device)  # noqa: B023
            plan = km.ntk_plan(model, x, outputs=outputs)
            row["plan_bytes"] = plan.expected_bytes
            for engine, kernel in _torch_func(name.split()[0], model, x, outputs, device).items():
                theirs = _measure(row, engine, kernel, device, 1 if engine == "class by class" else 3)
                if ours is not None and theirs is not None:
                    difference = (ours.flatten() - theirs.flatten()).abs().max() / ours.abs().max()
                    row[f"{engine} difference"] = float(difference)
                theirs = None
        store(table)


def _measure(
    row: dict[str, object], name: str, function: Callable[[], Tensor], device: str, calls: int = 3
) -> Tensor | None:
    """Write time and peak memory of a function, or its error, into ``row``, and return its result."""
    try:
        before = reset_peak(device)
        result = function()
        row[f"{name} seconds"] = median_seconds(function, device, calls)
        row[f"{name} peak_bytes"] = peak_bytes(device) - before
        return result
    except Exception as error:
        row[f"{name} error"] = f"{type(error).__name__}: {error}"[:200]
        return None


def _torch_func(
    workload: str, model: nn.Module, x: Tensor, outputs: str, device: str
) -> dict[str, Callable[[], Tensor]]:
    """Return the kernels of torch.func by name: from one Jacobian if it fits, and class by class for the trace."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())
    with torch.no_grad():
        C = model(x[:2]).shape[1]
    chunks = list(pairwise([*range(0, len(x), CHUNK[workload]), len(x)]))
    n_bytes = 4 * len(x) * C * sum(p.numel() for p in parameters.values())

    def output(values: dict[str, Tensor], example: Tensor) -> Tensor:
        return functional_call(model, (values, buffers), (example[None],))[0]

    def one_jacobian() -> Tensor:
        parts: dict[str, list[Tensor]] = {name: [] for name in parameters}
        with sdpa_kernel(SDPBackend.MATH):
            for start, stop in chunks:
                for name, part in vmap(jacrev(output), (None, 0))(parameters, x[start:stop]).items():
                    parts[name].append(part.flatten(2))
        shape = (len(x), -1) if outputs == "trace" else (len(x) * C, -1)
        size = len(x) if outputs == "trace" else len(x) * C
        gram = torch.zeros(size, size, device=device)
        for name in list(parts):
            jacobian = torch.cat(parts.pop(name)).reshape(shape)
            gram.addmm_(jacobian, jacobian.T)
        return gram if outputs == "trace" else gram.view(len(x), C, len(x), C).transpose(1, 2).contiguous()

    gradients = [vmap(grad(lambda p, e, c=c: output(p, e)[c]), (None, 0)) for c in range(C)]

    def by_class() -> Tensor:
        gram = torch.zeros(len(x), len(x), device=device)
        with sdpa_kernel(SDPBackend.MATH):
            for gradient in gradients:
                parts: dict[str, list[Tensor]] = {name: [] for name in parameters}
                for start, stop in chunks:
                    for name, part in gradient(parameters, x[start:stop]).items():
                        parts[name].append(part.flatten(1))
                for name in list(parts):
                    jacobian = torch.cat(parts.pop(name))
                    gram.addmm_(jacobian, jacobian.T)
        return gram

    engines: dict[str, Callable[[], Tensor]] = {}
    available = torch.cuda.mem_get_info(device)[1] if device.startswith("cuda") else 2**32
    if n_bytes < LARGEST_SHARE * available:
        engines["one Jacobian"] = one_jacobian
    if outputs == "trace" and len(x) > 3:
        engines["class by class"] = by_class
    return engines


def memory(device: str, sizes: Sizes, store: Store) -> None:
    """Compare the peak of device memory of km.ntk with the plan, for several budgets."""
    table: dict[str, dict[str, object]] = {}
    cases = (
        [("W1", 200, "trace")] if sizes.quick else [("W1", 8000, "trace"), ("W2", 2000, "trace"), ("W3", 512, "trace")]
    )
    for workload, n, outputs in cases:
        model, x = build(workload, n)
        model, x = model.to(device), x.to(device)
        for budget in ("1GiB",) if sizes.quick else ("512MiB", "1GiB", "4GiB"):
            row: dict[str, object] = {"n": n}
            table[f"{workload} {budget}"] = row
            try:
                plan = km.ntk_plan(model, x, outputs=outputs, memory=budget)
                row["plan_bytes"], row["budget_bytes"] = plan.expected_bytes, plan.memory
                km.ntk(model, x[:8], outputs=outputs, memory=budget)  # libraries allocate their workspaces
                before = reset_peak(device)
                km.ntk(model, x, outputs=outputs, memory=budget)
                row["peak_bytes"] = peak_bytes(device) - before
                row["peak / plan"] = row["peak_bytes"] / plan.expected_bytes
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}"[:200]
            store(table)


def ensembles(device: str, sizes: Sizes, store: Store) -> None:
    """Time one step of 60 networks on the digits, by all engines of the ensemble benchmark."""
    table: dict[str, dict[str, object]] = {}
    workloads = {"batch 64": (200, 64)} if sizes.quick else {"batch 64": (900, 64), "all 900 rows": (900, None)}
    for workload, (rows, batch_size) in workloads.items():
        row: dict[str, object] = {}
        table[workload] = row
        for name, engine in ENGINES.items():
            if name == "loop, Adam" or (sizes.quick and name != "train_mlps"):
                continue
            try:
                task = problem(rows, batch_size, torch.float32, device)
                trained = engine(task)
                row[f"{name} ms"] = 1e3 * median_seconds(lambda: [trained.step() for _ in range(5)], device, 3) / 5  # noqa: B023
            except Exception as error:
                row[f"{name} error"] = f"{type(error).__name__}: {error}"[:200]
        store(table)


def sweeps(device: str, sizes: Sizes, store: Store) -> None:
    """Time a model-wise sweep of double descent, and the same steps by vmap over the networks of each width."""
    steps = 20 if sizes.quick else 1000
    widths = [2, 8] if sizes.quick else list(WIDTHS)
    data = digits(n_train=100 if sizes.quick else 900)
    recipe = Recipe(lr=0.01, batch_size=64, steps=steps)
    row: dict[str, object] = {"steps": steps, "networks": len(widths) * SEEDS}

    def sweep() -> object:
        execution = double_descent.Execution(device=device, dtype=torch.float32)
        return double_descent.sweep(
            data, "width", widths, recipe=recipe, n_seeds=SEEDS, execution=execution, progress=False
        )

    try:
        row["sweep seconds"] = median_seconds(sweep, device, 1)
        if not sizes.quick:
            engine = ENGINES["vmap by width"](problem(900, 64, torch.float32, device))
            seconds = median_seconds(lambda: [engine.step() for _ in range(20)], device, 3) / 20
            row["torch.func vmap by width seconds (20 steps, extrapolated)"] = seconds * steps
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"[:300]
    store({"model-wise": row})


def ledgers(device: str, sizes: Sizes, store: Store) -> None:
    """Time the ledger of a run that was recorded on the device, per step, and first-order influences by torch.func there."""
    table: dict[str, dict[str, object]] = {}
    width, steps = (8, 3) if sizes.quick else (256, 60)
    for optimizer, make in {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
        "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    }.items():
        if sizes.quick and optimizer != "sgd":
            continue
        row: dict[str, object] = {"steps": steps}
        table[optimizer] = row
        try:
            _time_ledger(row, make, device, width, steps)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"[:300]
        store(table)


def _time_ledger(row: dict[str, object], make: Callable, device: str, width: int, steps: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    model = model.to(device)
    x = torch.randn(128, 784, generator=torch.Generator().manual_seed(0)).to(device)
    y = (torch.arange(128) % 10).to(device)
    directory, optimizer = Path(tempfile.mkdtemp()) / "run", make(model.parameters())

    def gradient(index: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x[index]), y[index]).backward()

    order = [torch.arange(128)[16 * (t % 8) : 16 * (t % 8) + 16] for t in range(steps)]
    with km.Recorder(model, optimizer, directory, loss="cross_entropy") as recorder:
        for index in order[:1]:
            gradient(index)
            recorder.step(index, x[index], y[index])
        synchronize(device)
        start = time.perf_counter()
        for index in order[1:]:
            gradient(index)
            recorder.step(index, x[index], y[index])
        synchronize(device)
        row["recorded step ms"] = 1e3 * (time.perf_counter() - start) / (steps - 1)
    row["training step ms"] = (
        1e3 * median_seconds(lambda: [(gradient(i), optimizer.step()) for i in order], device) / steps
    )
    run = km.Run.open(directory)
    tests = x[:6]
    ledger = km.ledger(run, model, tests)
    row["ledger ms per step"] = 1e3 * median_seconds(lambda: km.ledger(run, model, tests), device, 1) / len(run)
    row["nodes per step"] = float(ledger.evaluations.mean())
    row["closed"] = ledger.closed
    model = model.double()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def output(values: dict[str, Tensor], example: Tensor) -> Tensor:
        return functional_call(model, values, (example[None],))[0]

    def loss(values: dict[str, Tensor], example: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(output(values, example)[None], label[None])

    def first_order() -> Tensor:
        rows, batch = tests.double(), x[order[0]].double()
        tangents = vmap(jacrev(output), (None, 0))(parameters, rows)
        gradients = vmap(grad(loss), (None, 0, 0))(parameters, batch, y[order[0]])
        return sum(
            (tangents[name].flatten(2).flatten(0, 1) @ gradients[name].flatten(1).T for name in parameters),
            start=torch.zeros((), dtype=torch.float64, device=device),
        )

    row["torch.func first order ms per node"] = 1e3 * median_seconds(first_order, device)
