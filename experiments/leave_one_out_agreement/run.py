"""Compare scores with retraining without each example, over seeds; print a table, write results and figure."""

import json
import math
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata, t
from torch import Tensor

import kernelmem as km
from experiments import machine
from experiments.leave_one_out_agreement.configs import CLAIMS, SCORES, Options
from experiments.leave_one_out_agreement.figure import draw
from experiments.leave_one_out_agreement.training import Problem, centered_logit, make, record, retrain
from kernelmem.core import write_files
from kernelmem.trajectory import InfluenceOptions, influence, self_influence

__all__ = ["run"]

EXPECTED = Path(__file__).with_name("expected.json")
TOLERANCE = 1e-8  # of the ledger: far below the effect on ranks
SHUFFLES = 100
Effects = dict[
    str, tuple[Tensor, Tensor]
]  # name -> effect of leaving out on the example itself (n,), on test rows (m, n)


def run(options: Options) -> None:
    """Measure every seed, print the table next to the committed numbers, write the files."""
    rows, pictured = [], None
    for seed in range(options.seeds):
        problem = make(options, seed)
        truths, scores, facts = effects(problem)
        rows.append({"seed": seed, **facts, **measure(problem, truths, scores, seed)})
        pictured = pictured or (problem, truths["left_out"], scores)
        print(
            f"seed {seed:>2}  Spearman of the unrolled influence: self {rows[-1]['unrolled_self']:.3f},"
            f" test {rows[-1]['unrolled_test']:.3f}",
            flush=True,
        )
    assert pictured is not None
    frame = pd.DataFrame(rows)
    results = {
        "options": {name: value for name, value in asdict(options).items() if name != "out"},
        "machine": machine.describe(),
        "figures": summarize(frame),
    }
    print(table(results))
    pictures = draw(*pictured, results["figures"])
    content = json.dumps(results, indent=1) + "\n"
    write_files(options.out, {"results.json": content, "runs.csv": frame.to_csv(index=False), **pictures})


def effects(problem: Problem) -> tuple[Effects, Effects, dict[str, float]]:
    """Compute the change of the own-label centered logit without each example: by retraining, and by every score."""
    n = problem.options.n_train
    first = {name: own.detach().clone() for name, own in problem.model.state_dict().items()}
    with tempfile.TemporaryDirectory() as directory:
        recorded = record(problem, Path(directory) / "run")
        scores: Effects = {}
        for method in ("unrolled", "tracin", "last"):
            of_itself = self_influence(
                recorded,
                problem.model,
                problem.x,
                labels=problem.y,
                target=centered_logit,
                method=method,
                options=InfluenceOptions(chunk=None),
            )
            tested = influence(
                recorded,
                problem.model,
                problem.x_test,
                labels=problem.y_test,
                target=centered_logit,
                method=method,
                options=InfluenceOptions(data=(problem.x, problem.y)),
            )
            scores[method] = (-of_itself[:, 0], tested.leave_one_out[:, :, 0])
        contributions = km.ledger(
            recorded,
            problem.model,
            torch.cat([problem.x, problem.x_test]),
            labels=torch.cat([problem.y, problem.y_test]),
            target=centered_logit,
            options=km.LedgerOptions(data=(problem.x, problem.y), tolerance=TOLERANCE),
        ).contributions[:, :, 0]
        scores["ledger"] = (-contributions[:n].diagonal(), -contributions[n:])
    everyone, alone = torch.ones(1, n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)
    before = retrain(problem, first, everyone)
    with torch.no_grad():
        gap = float((before[0][0] - problem.model(problem.x)).abs().max())
    assert gap < 1e-8, f"retraining differs from the recorded training by {gap}"
    truths = {
        name: _change(problem, before, retrain(problem, first, everyone - part * alone))
        for name, part in (("left_out", 1.0), ("halved", 0.5))
    }
    facts = {
        "train_accuracy": float((before[0][0].argmax(1) == problem.y).double().mean()),
        "test_accuracy": float((before[1][0].argmax(1) == problem.y_test).double().mean()),
    }
    return truths, scores, facts


def _change(problem: Problem, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(n,) of each example on itself, (m, n) on the test rows; network i is the one without example i."""
    n = problem.options.n_train
    own = centered_logit(after[0][range(n), range(n)], problem.y) - centered_logit(before[0][0], problem.y)
    labels = problem.y_test.expand(n, -1)
    tested = centered_logit(after[1], labels) - centered_logit(before[1][0], problem.y_test)
    return own, tested.T


def measure(problem: Problem, truths: Effects, scores: Effects, seed: int) -> dict[str, float]:
    """Compute all metrics of one seed; "permuted" is the null: the examples of a score shuffled, mean over 100 shuffles."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = [torch.randperm(problem.options.n_train, generator=generator) for _ in range(SHUFFLES)]
    figures: dict[str, float] = {}
    own_truth, test_truth = truths["left_out"]
    for name, (own, tested) in scores.items():
        by_row = spearman(tested, test_truth)
        own_null = [spearman(own[None, order], own_truth[None]) for order in shuffled]
        test_null = [spearman(tested[:, order], test_truth) for order in shuffled]
        figures |= {
            f"{name}_self": float(spearman(own[None], own_truth[None])[0]),
            f"{name}_self_permuted": float(np.mean(own_null)),
            f"{name}_self_halved": float(spearman(own[None], truths["halved"][0][None])[0]),
            f"{name}_test": float(by_row.mean()),
            f"{name}_test_se_over_rows": float(by_row.std(ddof=1) / math.sqrt(len(by_row))),
            f"{name}_test_permuted": float(np.mean(test_null)),
            f"{name}_test_halved": float(spearman(tested, truths["halved"][1]).mean()),
            f"{name}_self_slope": float((own @ own_truth) / (own @ own)),
            f"{name}_test_slope": float((tested * test_truth).sum() / tested.square().sum()),
            f"{name}_auroc": km.detect(-own, problem.flipped, seed=seed).auroc,
        }
    found = km.detect(-own_truth, problem.flipped, seed=seed)
    return figures | {"left_out_auroc": found.auroc, "permuted_auroc": found.permuted_auroc}


def spearman(a: Tensor, b: Tensor) -> np.ndarray:
    """Compute the Spearman correlation row by row: (rows,)."""
    ranks = [rankdata(value.numpy(), axis=1) for value in (a, b)]
    centered = [value - value.mean(1, keepdims=True) for value in ranks]
    return (centered[0] * centered[1]).sum(1) / np.sqrt((centered[0] ** 2).sum(1) * (centered[1] ** 2).sum(1))


def summarize(runs: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Summarize every metric over seeds: mean, standard error, 95 % interval, smallest and largest."""
    return {name: _summary(runs[name].to_numpy()) for name in runs.columns.drop("seed")}


def _summary(values: np.ndarray) -> dict[str, float]:
    count = len(values)
    se = float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    reach = float(t.ppf(0.975, count - 1)) * se if count > 1 else math.nan
    mean = float(values.mean())
    figures = {"mean": mean, "se": se, "low": mean - reach, "high": mean + reach}
    figures |= {"min": float(values.min()), "max": float(values.max())}
    return {name: round(value, 6) for name, value in figures.items()}


def table(results: dict[str, Any]) -> str:
    """Format one line per score, the committed means, and the claims."""
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))["figures"] if EXPECTED.is_file() else {}
    found = results["figures"]
    lines = [
        "",
        "Spearman correlation with retraining without the example, mean ± standard error over seeds",
        f"{'':<20}{'':>32}{'halved, not left out':>32}{'examples permuted':>33}{'AUROC of':>16}",
        f"{'':<20}{'self':>16}{'test rows':>16}{'self':>16}{'test rows':>16}{'self':>17}{'test rows':>16}{'the flips':>16}"
        "   committed",
    ]
    for name, title in SCORES.items():
        columns = [found[f"{name}_{key}"] for key in ("self", "test", "self_halved", "test_halved")]
        columns += [found[f"{name}_{key}"] for key in ("self_permuted", "test_permuted", "auroc")]
        before = [f"{expected[key]['mean']:.3f}" if (key := f"{name}_{kind}") in expected else "" for kind in CLAIMS]
        widths = (16, 16, 16, 16, 17, 16, 16)
        parts = [f"{_pm(column):>{width}}" for column, width in zip(columns, widths, strict=True)]
        lines.append(f"{title:<20}{''.join(parts)}   {', '.join(filter(None, before))}")
    lines.append(f"{'retraining':<20}{_pm(found['left_out_auroc']):>113}")
    for kind, claim in CLAIMS.items():
        mean = found[f"unrolled_{kind}"]["mean"]
        lines.append(
            f"claim: unrolled influence, {kind}, mean at least {claim}: {'holds' if mean >= claim else 'FAILS'}"
        )
    return "\n".join(lines)


def _pm(summary: dict[str, float]) -> str:
    return f"{summary['mean']:.3f} ± {summary['se']:.3f}"
