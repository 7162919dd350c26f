"""Compare audits with memorization of every row, by other random subsets and by training without 2 % of the rows at a time."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import kernelmem as km
from experiments import machine
from experiments.audit_validation.training import N_CLASSES, Training
from kernelmem.auditing.retraining import CorrectCounts, count_correct, deconvolve
from kernelmem.core import seed_sequence, write_files
from kernelmem.statistics import clopper_pearson, spearman
from kernelmem.training import digits

__all__ = ["SETTINGS", "Options", "Setting", "Truth", "claims", "left_out", "measure", "on_subsets", "run"]

THRESHOLD, KERNEL_THRESHOLD = 0.25, 0.5
PARTS = 50  # of the rows that are left out together
GROUPS = 4  # of the models of a truth, for its standard error
FEWER = 8  # repetitions of the coarser truth
CLAIMS = {
    "retraining_spearman": (0.75, "rank correlation of the ranking score with the true change of margin (retraining)"),
    "retraining_precision": (0.9, "precision of the flagged rows (retraining)"),
    "retraining_recall": (0.6, "recall of the flagged rows (retraining)"),
    "retraining_covers_left_out": (0.9, "interval of the memorized share covers the truth (retraining)"),
    "kernel_spearman": (0.75, "rank correlation of the ranking score with the true change of margin (kernel)"),
    "kernel_covers": (0.9, "interval of the memorized share covers the truth (kernel)"),
}


@dataclass(frozen=True)
class Setting:
    """Training, share of wrong labels, and size of the truth.

    Attributes:
        repetitions: number of models without each row, for the truth by leaving out 2 % of the rows at a time.
        n_truth: number of models of the truth on random subsets as large as those of the audit.
    """

    name: str
    training: Training
    noise: float
    repetitions: int = 12
    n_truth: int = 256


SETTINGS = (
    Setting("clean", Training(300), 0.0),
    Setting("noise not fitted", Training(30), 0.15, repetitions=40, n_truth=1024),
    Setting("noise fitted", Training(300), 0.15),
)


@dataclass(frozen=True)
class Options:
    """Audit networks (64-64-10, full-batch Adam, learning rate 0.02) trained on digits, and compare with retraining."""

    draws: int = 5
    """Draws of rows and wrong labels per setting; each has its own truth."""
    audits: int = 2
    """Audits per draw, of networks and shadow models with other seeds."""
    n_train: int = 200
    """Number of training rows, and of test rows."""
    n_models: int = 128
    """Number of shadow models of an audit."""
    first_seed: int = 1000
    """First seed."""
    out: Path = Path("out/audit_validation")
    """Directory for subsets.json."""


@dataclass(frozen=True)
class Truth:
    """Models that were trained with and without every row.

    Attributes:
        correct: (m, n) True where a model gives the label.
        masks: (m, n) True where it was trained on the row.
        margin: (m, n) margin of the label.
    """

    correct: np.ndarray
    masks: np.ndarray
    margin: np.ndarray

    @classmethod
    def of(cls, outputs: Tensor, y: Tensor, masks: np.ndarray) -> "Truth":
        """Return the truth from outputs (m, n, C)."""
        label = y.expand(len(outputs), len(y))[..., None]
        margin = outputs.gather(-1, label) - outputs.scatter(-1, label, -torch.inf).amax(-1, keepdim=True)
        return cls((outputs.argmax(-1) == y).numpy(), masks, margin[..., 0].double().numpy())

    def first(self, models: int) -> "Truth":
        """Return the truth from the first models."""
        return Truth(self.correct[:models], self.masks[:models], self.margin[:models])

    @property
    def counts(self) -> CorrectCounts:
        """Numbers of models that give the label."""
        return count_correct(self.correct, self.masks)

    @property
    def p_out(self) -> np.ndarray:
        """Share of the models without the row that give its label, (n,)."""
        return self.counts.correct_out / self.counts.n_out

    @property
    def memorization(self) -> np.ndarray:
        """Feldman's memorization, (n,)."""
        return self.counts.correct_in / self.counts.n_in - self.p_out

    @property
    def change(self) -> np.ndarray:
        """Mean margin of models with the row minus models without it, (n,)."""
        inside = self.masks.astype(np.float64)
        outside = 1 - inside
        return (self.margin * inside).sum(0) / inside.sum(0) - (self.margin * outside).sum(0) / outside.sum(0)

    def probability(self, threshold: float) -> np.ndarray:
        """Posterior probability that the memorization of a row exceeds the threshold, behind the noise of the counts, (n,)."""
        return deconvolve(self.counts, threshold, repetitions=2).probability

    def share(self) -> tuple[float, float]:
        """Return the share of rows above .25 behind the noise of the counts, and its standard error from 4 groups of models."""
        groups = [
            Truth(correct, masks, margin)
            for correct, masks, margin in zip(
                *(np.array_split(a, GROUPS) for a in (self.correct, self.masks, self.margin)), strict=True
            )
        ]
        shares = [float(group.probability(THRESHOLD).mean()) for group in groups]
        return float(self.probability(THRESHOLD).mean()), float(np.std(shares, ddof=1) / GROUPS**0.5)


def left_out(training: Training, x: Tensor, y: Tensor, repetitions: int, seed: int) -> Truth:
    """Train models without a fiftieth of the rows each, until every row was left out ``repetitions`` times."""
    rng = np.random.default_rng(seed)
    n = len(y)
    masks = np.ones((repetitions, PARTS, n), bool)
    for repetition in masks:
        for mask, part in zip(repetition, np.array_split(rng.permutation(n), PARTS), strict=True):
            mask[part] = False
    masks = masks.reshape(-1, n)
    subsets = [torch.from_numpy(np.flatnonzero(mask)) for mask in masks]
    return Truth.of(training.outputs(x, y, subsets, rng.integers(2**31 - 2, size=len(masks)).tolist()), y, masks)


def on_subsets(training: Training, x: Tensor, y: Tensor, n_models: int, seed: int) -> Truth:
    """Train models on random subsets of the size that the audit uses."""
    shadows = training.shadow_models((x, y), (x[:1], y[:1]), n_models, seed)
    return Truth.of(shadows.logits, y, shadows.masks.numpy())


def measure(setting: Setting, seed: int, options: Options) -> list[dict[str, float | None]]:
    """Audit networks trained on one draw of rows by both methods; compare them with both truths of this draw."""
    seeds = seed_sequence(seed, ["flips", "audits", "subsets", "left out"])
    training = setting.training
    data = digits(n_train=options.n_train, seed=seed)
    x, y = training.rows(data.x_train), data.y_train
    test = training.rows(data.x_test[: options.n_train]), data.y_test[: options.n_train]
    if setting.noise:
        y = km.corrupt_labels(y, setting.noise, "symmetric", seed=seeds["flips"]).y
    truth = left_out(training, x, y, setting.repetitions, seeds["left out"])
    stated = on_subsets(training, x, y, setting.n_truth, seeds["subsets"])
    common = _truths(truth, stated)
    results = []
    for own in np.random.default_rng(seeds["audits"]).integers(2**31 - 2, size=options.audits).tolist():
        network = training.networks(x, y, [torch.arange(len(y))], [own])[0]
        by_retraining = km.AuditOptions(
            n_classes=N_CLASSES, retrain=training.shadows, n_models=options.n_models, n_verified=0
        )
        audits = {
            "retraining": km.audit(network, (x, y), test, seed=own, options=by_retraining),
            "kernel": km.audit(network, (x, y), test, seed=own, options=km.AuditOptions(n_classes=N_CLASSES)),
        }
        results.append({"seed": seed, **common, **_compare(audits, truth, stated, common)})
    return results


def _truths(truth: Truth, stated: Truth) -> dict[str, float]:
    """Return the share of memorized rows of both truths, behind the noise of their counts and without allowing for it."""
    share, error = truth.share()
    stated_share, stated_error = stated.share()
    return {
        "left_out_share": share,
        "left_out_error": error,
        "left_out_plain": float((truth.memorization > THRESHOLD).mean()),
        "subsets_share": stated_share,
        "subsets_error": stated_error,
        "subsets_plain": float((stated.memorization > THRESHOLD).mean()),
    }


def _compare(
    audits: dict[str, km.Audit], truth: Truth, stated: Truth, common: dict[str, float]
) -> dict[str, float | None]:
    """Return the numbers of one network; precision and recall against counted and against estimated memorization."""
    correct = audits["kernel"].rows.network_correct
    true_mean = float((correct - truth.p_out).mean())
    result: dict[str, float | None] = {"true_mean": true_mean}
    for name, audit in audits.items():
        interval, flagged = audit.document.how_much.fraction, audit.rows.flagged
        above = THRESHOLD if name == "retraining" else KERNEL_THRESHOLD
        positive = truth.memorization > above
        result |= {
            f"{name}_share": interval.value,
            f"{name}_low": interval.low,
            f"{name}_high": interval.high,
            f"{name}_flagged": int(flagged.sum()),
            f"{name}_precision": _mean(positive[flagged]),
            f"{name}_recall": _mean(flagged[positive]),
            f"{name}_precision_posterior": _mean(truth.probability(above)[flagged]),
            f"{name}_precision_{FEWER}_repetitions": _mean((truth.first(FEWER * PARTS).memorization > above)[flagged]),
            f"{name}_precision_subsets": _mean((stated.memorization > above)[flagged]),
            f"{name}_recall_subsets": _mean(flagged[stated.memorization > above]),
            f"{name}_spearman": float(spearman(audit.rows.score, truth.change)),
            f"{name}_announced": float(audit.document.verdict.status == "memorized"),
            f"{name}_no_claim": float(audit.document.verdict.status == "no-claim"),
        }
    interval = audits["retraining"].document.how_much.fraction
    for name in ("left_out", "subsets"):
        result[f"retraining_covers_{name}"] = float(interval.low <= common[f"{name}_share"] <= interval.high)
    interval = audits["kernel"].document.how_much.fraction
    result["kernel_covers"] = float(interval.low <= true_mean <= interval.high)
    return result


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def run(options: Options) -> None:
    """Measure every setting and draw, print the table and the claims, write the results."""
    cells: dict[str, object] = {}
    for setting in SETTINGS:
        seeds = range(options.first_seed, options.first_seed + options.draws)
        audits = [audit for seed in seeds for audit in measure(setting, seed, options)]
        cells[setting.name] = {"summary": summary(audits), "audits": audits}
        print(setting.name, json.dumps(summary(audits)), flush=True)
        results = {
            "options": {name: value for name, value in asdict(options).items() if name != "out"},
            "settings": {setting.name: asdict(setting) for setting in SETTINGS},
            "machine": machine.describe(),
            "cells": cells,
        }
        write_files(options.out, {"subsets.json": json.dumps(results, indent=1, allow_nan=False) + "\n"})
    print("\n".join(claims({name: cell["summary"] for name, cell in cells.items() if isinstance(cell, dict)})))


def summary(audits: Sequence[dict[str, float | None]]) -> dict[str, dict[str, float]]:
    """Return mean and extremes over audits; of shares of audits, the number of audits and its 95 % interval."""
    cells: dict[str, dict[str, float]] = {}
    for name in audits[0]:
        values = [value for audit in audits if (value := audit[name]) is not None]
        if not values or name == "seed":
            continue
        cells[name] = {"mean": float(np.mean(values)), "min": min(values), "max": max(values)}
        if "_covers" in name or name.endswith(("_announced", "_no_claim")):
            interval = clopper_pearson(int(sum(values)), len(values))
            cells[name] = {"mean": interval.value, "low": interval.low, "high": interval.high, "audits": len(values)}
    return cells


def claims(cells: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Compare the means over audits of every setting with the claims."""
    lines = []
    for name, (least, text) in CLAIMS.items():
        values = {setting: cell[name]["mean"] for setting, cell in cells.items() if name in cell}
        shown = ", ".join(f"{setting} {value:.3f}" for setting, value in values.items())
        verdict = "holds" if all(value >= least for value in values.values()) else "FAILS"
        lines.append(f"claim: {text} at least {least:g}: {shown}, {verdict}")
    return lines
