"""ExPLAIND's exact path kernel (explaind.epk_model; the same code in its releases 0.0.2 and 0.1.0).

It is fed the run that our recorder wrote: its weights, batches and optimizer state in the places where its own wrappers put
them. It needs float32 and a network that ends with log-softmax, and explains log-probabilities. Two defects are got round:
`predict` fails where parameter-wise kernels are not kept (it writes into a missing dict), and its file paths are not used.
"""

import contextlib
import io

import torch
from explaind.data_paths import DataPath
from explaind.epk_model import ExactPathKernelModel
from explaind.model_paths import ModelPath
from explaind.modulo_model.loss import RegularizedCrossEntropyLoss
from explaind.optimizer_paths import AdamWOptimizerPath, SGDOptimizerPath
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from experiments.benchmarks.ledger.peers.interface import Account, Engine
from experiments.benchmarks.ledger.workloads import OPTIMIZERS, Problem

__all__ = ["prepare"]


class _Path(ExactPathKernelModel):
    def exact_path_kernel_step_test(self, *arguments, prev_eval=None, **options):
        own = {} if prev_eval is None else prev_eval
        return super().exact_path_kernel_step_test(*arguments, prev_eval=own, **options)


class _Data(TensorDataset):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__(x, y)
        self.targets = list(y)


def prepare(problem: Problem, *, nodes: int, early_nodes: int | None = None, half: bool = False) -> Engine:
    """``early_nodes`` in the first four steps; ``half``: float16 buffers, as its momentum has them by default."""
    x, steps = problem.x, len(problem.run)

    def analyze(steps: int = steps, nodes: int = nodes, early: int = early_nodes or nodes) -> Account:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            path = _path(problem, steps, nodes, early, half)
            after, before, kernel, *_ = path.predict(x, keep_kernel_matrices=True)
        change = (after.double() - before.double()).detach()
        contributions = sum(part[:, 0].double() for part in kernel.values()) / problem.workload.batch  # (m, C, n)
        contributions = contributions.detach().transpose(1, 2)
        return Account(
            contributions, change - contributions.sum(1), stop=steps, log_probabilities=True, evaluations=float(nodes)
        )

    return Engine(analyze, lambda: analyze(2, 2, 2))


def _path(problem: Problem, steps: int, nodes: int, early: int, half: bool) -> _Path:
    run, workload = problem.run, problem.workload
    x, y, _ = problem.data
    checkpoints = [run.checkpoint(t) for t in range(steps + 1)]
    model = ModelPath(
        nn.Sequential(*workload.model(), nn.LogSoftmax(1)),
        device="cpu",
        checkpoints=[own.model for own in checkpoints],
        output_dim=workload.sizes[-1],
    )
    _, options = OPTIMIZERS[workload.optimizer]
    groups = [{"lr": options["lr"], "weight_decay": options.get("weight_decay", 0.0)} for _ in checkpoints]
    if workload.optimizer == "adamw":
        for group, own in zip(groups, checkpoints, strict=True):
            for moment in ("exp_avg", "exp_avg_sq"):
                group[moment] = {f"model.{name}": state[moment] for name, state in own.optimizer.items()}
        optimizer = AdamWOptimizerPath(model, **options, checkpoints=groups, device="cpu")
    else:
        optimizer = SGDOptimizerPath(model, **options, checkpoints=groups, buffer_float16=half, device="cpu")
    data = DataPath(DataLoader(_Data(x, y)), overwrite=True)
    for t in range(steps):
        rows, labels = run.batch(t)
        data.checkpoints.append({"X": rows, "y": labels, "indices": run.steps[t].examples})
    return _Path(
        model,
        optimizer,
        RegularizedCrossEntropyLoss(alpha=0.0),
        data,
        integral_eps=1 / nodes,
        early_integral_eps=1 / early,
        early_steps=min(4, steps),
        train_set_size=workload.n,
        device="cpu",
        evaluate_predictions=False,
    )


assert torch.get_default_dtype() == torch.float32  # it drops parameters of any other
