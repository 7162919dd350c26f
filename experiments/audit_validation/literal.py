"""Audits compared with literal leave-one-out retraining at the full number of rows."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import kernelmem as km
from experiments.audit_validation.training import N_CLASSES, Training
from kernelmem.core import seed_sequence
from kernelmem.statistics import clopper_pearson, mean_interval, spearman, spearman_brown
from kernelmem.training import digits

__all__ = ["LITERAL_SETTINGS", "LiteralSetting", "Truth", "measure_literal", "retrain_without"]


@dataclass(frozen=True)
class LiteralSetting:
    """Data, training, number of shadow models, and rows that are left out one by one.

    Attributes:
        noise: share of wrong labels.
        n_rows: size of the random sample of rows that are left out.
        n_flagged: largest number of flagged rows outside the sample that are left out, too.
        pairs: number of seeds; for each, one model with and one without every row.
    """

    name: str
    training: Training
    noise: float
    n_train: int = 500
    n_test: int = 500
    n_models: int = 128
    n_rows: int = 100
    n_flagged: int = 40
    pairs: int = 8


CNN = Training(steps=100, width=8, convolutional=True)
LITERAL_SETTINGS = (
    LiteralSetting("clean", Training(300), 0.0),
    LiteralSetting("noise not fitted", Training(30), 0.15),
    LiteralSetting("noise fitted", Training(300), 0.15),
    LiteralSetting("CNN, noise fitted", CNN, 0.15, n_train=300, n_test=300),
)


@dataclass(frozen=True)
class Truth:
    """Results of retraining without r rows, one by one.

    Attributes:
        rows: (r,) rows.
        change: (pairs, r) margin of the label with the row minus without it, same initial weights.
        p_in: (r,) share of the models with the row that give its label.
        p_out: (r,) share of the models without the row that give its label.
    """

    rows: Tensor
    change: Tensor
    p_in: Tensor
    p_out: Tensor

    @property
    def memorization(self) -> np.ndarray:
        """Feldman's memorization at the full number of rows, (r,)."""
        return (self.p_in - self.p_out).numpy()

    @property
    def ceiling(self) -> float:
        """Largest rank correlation that a perfect score can have, from two halves of the seeds."""
        half = len(self.change) // 2
        reliability = spearman_brown(spearman(self.change[:half].mean(0), self.change[half : 2 * half].mean(0)))
        return float(np.sqrt(max(float(reliability), 0.0)))


def retrain_without(training: Training, x: Tensor, y: Tensor, rows: Tensor, *, pairs: int, seed: int) -> Truth:
    """Train ``pairs`` models with all rows, and as many without each of ``rows``, from the same initial weights."""
    n, r = len(y), len(rows)
    everything = torch.arange(n)
    seeds = np.random.default_rng(seed).integers(2**31 - 2, size=pairs).tolist()
    subsets = [everything] * pairs + [everything[everything != row] for row in rows.tolist() for _ in seeds]
    outputs = training.outputs(x, y, subsets, seeds * (1 + r))
    label = y.expand(len(outputs), n)[..., None]
    others = outputs.scatter(-1, label, -torch.inf).amax(-1)
    margin = (outputs.gather(-1, label)[..., 0] - others).reshape(1 + r, pairs, n)
    correct = (outputs.argmax(-1) == y).to(torch.float64).reshape(1 + r, pairs, n)
    own = torch.arange(r)
    p_out = correct[1:][own, :, rows].mean(1)
    total = correct.sum((0, 1))[rows]
    return Truth(
        rows=rows,
        change=(margin[0][:, rows] - margin[1:][own, :, rows].T),
        p_in=(total - pairs * p_out) / (r * pairs),
        p_out=p_out,
    )


def measure_literal(setting: LiteralSetting, seed: int) -> dict[str, float | None]:
    """Audit one network with and without retraining, and compare with literal retraining of a random sample."""
    seeds = seed_sequence(seed, ["flips", "network", "shadows", "sample", "truth"])
    training = setting.training
    data = digits(n_train=setting.n_train, seed=seed)
    x, y = training.rows(data.x_train), data.y_train
    test = training.rows(data.x_test[: setting.n_test]), data.y_test[: setting.n_test]
    if setting.noise:
        y = km.corrupt_labels(y, setting.noise, "symmetric", seed=seeds["flips"]).y
    network = training.networks(x, y, [torch.arange(len(y))], [seeds["network"] % 2**31])[0]
    options = {
        "retraining": km.AuditOptions(
            n_classes=N_CLASSES, retrain=training.shadows, n_models=setting.n_models, n_verified=0
        ),
        "kernel": km.AuditOptions(n_classes=N_CLASSES),
    }
    audits = {
        name: km.audit(network, (x, y), test, seed=seeds["shadows"], options=values) for name, values in options.items()
    }
    rng = np.random.default_rng(seeds["sample"])
    order = rng.permutation(len(y))
    sample, others = order[: setting.n_rows], order[setting.n_rows :]
    flagged = {name: audit.rows.flagged for name, audit in audits.items()}
    extra = others[(flagged["retraining"] | flagged["kernel"])[others]][: setting.n_flagged]
    rows = torch.from_numpy(np.concatenate([sample, extra]))
    truth = retrain_without(training, x, y, rows, pairs=setting.pairs, seed=seeds["truth"])
    r = setting.n_rows
    change, memorization = truth.change.mean(0).numpy(), truth.memorization
    network_correct = audits["kernel"].rows.network_correct[rows.numpy()]
    only_trained = mean_interval(network_correct[:r] - truth.p_out[:r].numpy())
    share = clopper_pearson(int((memorization[:r] > 0.25).sum()), r)
    result: dict[str, float | None] = {
        "rows": r,
        "ceiling": Truth(truth.rows[:r], truth.change[:, :r], truth.p_in[:r], truth.p_out[:r]).ceiling,
        "true_share": share.value,
        "true_share_low": share.low,
        "true_share_high": share.high,
        "true_mean": only_trained.value,
        "true_mean_low": only_trained.low,
        "true_mean_high": only_trained.high,
    }
    for name, audit in audits.items():
        how_much = audit.document.how_much
        above = 0.25 if name == "retraining" else 0.5
        marked, positive = flagged[name][rows.numpy()], memorization > above
        found = audit.rows.score[rows.numpy()[:r]]
        result |= {
            f"{name}_spearman": float(spearman(found, change[:r])),
            f"{name}_flagged": int(flagged[name].sum()),
            f"{name}_precision": float(positive[marked].mean()) if marked.any() else None,
            f"{name}_mean_memorization_of_flagged": float(memorization[marked].mean()) if marked.any() else None,
            f"{name}_precision_rows": int(marked.sum()),
            f"{name}_recall": float(marked[:r][positive[:r]].mean()) if positive[:r].any() else None,
            f"{name}_recall_rows": int(positive[:r].sum()),
            f"{name}_share": how_much.fraction.value,
            f"{name}_low": how_much.fraction.low,
            f"{name}_high": how_much.fraction.high,
            f"{name}_announced": float(audit.document.verdict.status == "memorized"),
            f"{name}_no_claim": float(audit.document.verdict.status == "no-claim"),
        }
    return result
