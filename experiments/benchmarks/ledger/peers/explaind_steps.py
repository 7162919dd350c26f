"""ExPLAIND's StepExplainer (explaind.accelerated, new in 0.1.0), put to a network of ours.

It explains one AdamW step at a time: every example of that step's batch, decay, and what earlier gradients still do through
the momentum, as one line ("first moment") that is given to no example. Each output of each row is a test instance of its own;
its training gradients are computed anew for each of them. Only what its base class asks of users is written here. Its
accelerator is used for `backward` alone, which on one CPU is torch's.

As published, it resets the place of the first node after every test instance, but not the weights there: from the second
instance on, the first of its nodes lies at 1 + 1/(2·nodes) and not at 1/(2·nodes). ``repaired`` puts it where it belongs.
"""

import contextlib
import io
import tempfile

import torch
from explaind.accelerated.explainer import StepExplainer
from torch import Tensor, nn

from experiments.benchmarks.ledger.peers.interface import Account, Engine
from experiments.benchmarks.ledger.workloads import Problem

__all__ = ["prepare"]


class _Scalar(nn.Module):
    """One output of one row, or the loss of one example."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(
        self, x: Tensor, output: int | None = None, label: Tensor | None = None, all_outs: bool = True
    ) -> tuple[Tensor]:
        logits = self.body(x)
        return (logits[0, output] if label is None else nn.functional.cross_entropy(logits, label),)


class _Plain:
    @staticmethod
    def backward(loss: Tensor) -> None:
        loss.backward()


class _Step(StepExplainer):
    def __init__(self, problem: Problem, t: int, x: Tensor, outputs: int, folder: str, **settings) -> None:
        self.problem, self.at, self.repaired = (
            problem,
            t,
            settings["repaired"],
        )  # the base class resets step_id, then calls load_checkpoint
        tests = {f"row{j}output{c}": {"x": x[j : j + 1], "output": c} for j in range(len(x)) for c in range(outputs)}
        super().__init__(folder, tests, expl_type="loss", score_path=folder, num_steps=settings["nodes"])
        self.accelerator = _Plain

    def load_checkpoint(self, path=None) -> None:
        self.step_id = t = self.at
        rows, labels = self.problem.run.batch(t)
        self.train_instances = {
            f"example{i}": {"x": rows[i : i + 1], "label": labels[i : i + 1]} for i in range(len(rows))
        }
        self.train_grad_scaling, self.test_grad_scaling, self.gradient_scaling = 1 / len(rows), 1.0, 1.0
        self.model, self.optimizer = self._at(t, t + 1)
        _, self.optimizer_pre = self._at(t, t)

    def _at(self, t: int, moments: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        run, workload = self.problem.run, self.problem.workload
        body = workload.model()
        body.load_state_dict(run.weights(t))
        model = _Scalar(body)
        kind, options = type(workload.make_optimizer(body)), workload.make_optimizer(body).defaults
        optimizer = kind(model.named_parameters(), lr=options["lr"], weight_decay=options["weight_decay"])
        kept = run.checkpoint(moments).optimizer
        for name, parameter in body.named_parameters():
            state = kept.get(name) or {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = dict(state)
        return model, optimizer

    def compute_test_integral(self, test_instances, mask) -> None:
        if self.repaired:
            self.wrapped_model.update_interpolated(0.5 / self.num_steps)
        super().compute_test_integral(test_instances, mask)

    def compute_step_model(self) -> None:
        after, _ = self._at(self.step_id + 1, self.step_id)
        self.wrapped_model = self._wrap_model("", self.model, after)


def prepare(problem: Problem, *, first: int, steps: int, nodes: int = 10, repaired: bool = False) -> Engine:
    """Steps first..first+steps−1 of the run."""

    def analyze(
        steps: int = steps, outputs: int = problem.workload.sizes[-1], rows: int = problem.workload.tests
    ) -> Account:
        x, n = problem.x[:rows], problem.workload.n
        contributions = torch.zeros(len(x), n, outputs, dtype=torch.float64)
        others, moment = (torch.zeros(len(x), outputs, dtype=torch.float64) for _ in range(2))
        for t in range(first, first + steps):
            with (
                tempfile.TemporaryDirectory() as folder,
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                step = _Step(problem, t, x, outputs, folder, nodes=nodes, repaired=repaired)
                step.compute_influence_scores()
            examples = problem.run.steps[t].examples
            for (source, test, _), scores in step.acc_scores.items():
                row, output = (int(part) for part in test.removeprefix("row").split("output"))
                value = sum(part["sum"] for name, part in scores.items() if name != "num_vals")
                if source == "first_moment":
                    moment[row, output] += value
                elif source == "regularization":
                    others[row, output] += value
                else:
                    contributions[row, examples[int(source.removeprefix("example"))], output] += value
        return Account(
            contributions,
            others + moment,
            start=first,
            stop=first + steps,
            unattributed=float(moment.abs().max()),
            evaluations=float(nodes),
        )

    return Engine(analyze, lambda: analyze(1, 1, 1))
