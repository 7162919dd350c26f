"""Audits in which nothing is memorized, and audits with planted wrong labels."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

import kernelmem as km
from experiments.audit_validation.training import N_CLASSES, Training
from kernelmem.auditing.retraining import SHARE, retraining_power, retraining_scores
from kernelmem.core import seed_sequence
from kernelmem.memorization.shadows import ShadowEnsemble, ShadowIdentity
from kernelmem.training import digits

__all__ = [
    "FACTORS",
    "Copies",
    "NullOptions",
    "Unseen",
    "announced_counts",
    "announced_effect",
    "measure_null",
    "null_audits",
    "retraining_nulls",
]

FACTORS = {"printed / 1.5": 1 / 1.5, "printed": 1.0, "1.5 printed": 1.5}
Copies = Literal["none", "test", "train"]
Unseen = Literal["network", "network and models"]


@dataclass(frozen=True)
class NullOptions:
    """Sizes of null audits.

    Attributes:
        n_rows: audited rows that are called training rows, and test rows: the network saw neither.
        n_seen: rows that the network was trained on.
        copy_noise: standard deviation of the noise of near-copies (pixels are between 0 and 1).
        copied_share: share of the rows that are near-copies of other rows of their kind.
        n_models: shadow models of an audit by retraining.
    """

    n_rows: int = 200
    n_seen: int = 200
    copy_noise: float = 0.01
    copied_share: float = 0.5
    n_models: int = 32


def null_audits(copies: Copies, seeds: range, options: NullOptions = NullOptions()) -> list[dict[str, float | str]]:
    """Audit networks that were trained on other rows of digits; training and test rows are exchangeable."""
    training, results, draws = Training(300), [], []
    _, _, _, x, y = _draw(0, options)
    for seed in seeds:
        draws.append(_draw(seed, options)[:3])
    networks = training.networks(x, y, [seen for seen, _, _ in draws], [seed + 1 for seed in seeds])
    for seed, network, (_, train, test) in zip(seeds, networks, draws, strict=True):
        rows = {"train": (x[train], y[train]), "test": (x[test], y[test])}
        if copies != "none":
            rows[copies] = _with_copies(*rows[copies], options, seed)
        results.append({"seed": seed, **measure_null(network, rows["train"], rows["test"], seed)})
    return results


def retraining_nulls(
    unseen: Unseen, seeds: range, options: NullOptions = NullOptions()
) -> list[dict[str, float | str]]:
    """Audit networks that were trained on other rows by retraining, with shadow models that saw the rows, or others, too.

    Models that did not see the rows have memberships at random.
    """
    training, results = Training(300), []
    for seed in seeds:
        seen, train, test, x, y = _draw(seed, options)
        rows, (a, b) = torch.cat([seen, train, test]), (len(seen), len(train))
        rng = np.random.default_rng(seed)
        trained_on = torch.arange(a, a + b) if unseen == "network" else torch.arange(a)
        masks = _balanced_masks(options.n_models, len(trained_on), rng)
        subsets = [trained_on[mask] for mask in masks]
        outputs = training.outputs(x[rows], y[rows], subsets, rng.integers(2**31 - 2, size=len(masks)).tolist())
        if unseen != "network":
            masks = _balanced_masks(options.n_models, b, rng)
        shadows = ShadowEnsemble(
            masks, outputs[:, a : a + b], y[train], outputs[:, a + b :], y[test], ShadowIdentity(share=SHARE)
        )
        network = training.networks(x, y, [seen], [seed + 1])[0]
        train_rows, test_rows = (x[train], y[train]), (x[test], y[test])
        results.append({"seed": seed, **measure_null(network, train_rows, test_rows, seed, shadows)})
    return results


def _balanced_masks(n_models: int, n: int, rng: np.random.Generator) -> Tensor:
    """Return memberships (n_models, n) of rows in random models, each row in as many models as in an audit."""
    columns = np.arange(n_models)[:, None] < round(SHARE * n_models)
    return torch.from_numpy(rng.permuted(np.repeat(columns, n, axis=1), axis=0))


def measure_null(
    network: torch.nn.Module,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    seed: int,
    shadows: ShadowEnsemble | None = None,
) -> dict[str, float | str]:
    """Return status and p-value of one audit, and whether its interval contains 0."""
    audit = km.audit(network, train, test, seed=seed, options=km.AuditOptions(n_classes=N_CLASSES, retrain=shadows))
    how_much, power = audit.document.how_much, audit.document.power
    return {
        "status": audit.document.verdict.status,
        "p_value": how_much.p_value,
        "covers_zero": float(how_much.fraction.low <= 0 <= how_much.fraction.high),
        "share": how_much.fraction.value,
        "printed": float("nan") if power.smallest_count is None else float(power.smallest_count),
        "failed": ", ".join(gate.name for gate in audit.document.gates if gate.passed is False),
    }


def announced_counts(seed: int, options: NullOptions = NullOptions()) -> list[dict[str, float | str]]:
    """Audit networks that fit k wrong labels of the audited rows and saw none of the others, by the kernel method.

    k is 0, and the smallest number that the audit without any prints as announced with probability .8: this number, and
    1 / 1.5 and 1.5 times this number.
    """
    training = Training(300)
    seen, train, test, x, y = _draw(seed, options)
    rng = np.random.default_rng(seed)
    results, counts = [], [("nothing", 0)]
    while counts:
        place, k = counts.pop(0)
        planted = torch.from_numpy(rng.choice(train.numpy(), k, replace=False))
        noisy = y.clone()
        noisy[planted] = (y[planted] + torch.from_numpy(rng.integers(1, N_CLASSES, size=k))) % N_CLASSES
        network = training.networks(x, noisy, [torch.cat([seen, planted])], [seed + 1])[0]
        result = measure_null(network, (x[train], noisy[train]), (x[test], noisy[test]), seed)
        printed = result["printed"]
        if not results and isinstance(printed, float) and printed == printed:
            counts = [(name, round(factor * printed)) for name, factor in FACTORS.items()]
        fitted = float((network(x[planted]).argmax(1) == noisy[planted]).double().mean()) if k else 1.0
        results.append({"seed": seed, "place": place, "planted": k, "fitted": fitted, **result})
    return results


def announced_effect(n_pool: int, n_models: int, draws: int, seed: int) -> dict[str, float]:
    """Compare the printed smallest effect on one row with the effect that subsets of real shadow models announce.

    Of a pool of models of networks that fit 15 % wrong labels, whose counts define the true effect of each row, random
    subsets are audited. The observed smallest effect is where 80 % of the rows of that effect are announced.
    """
    seeds = seed_sequence(seed, ["flips", "shadows", "draws"])
    data = digits(n_train=500, seed=seed)
    y = km.corrupt_labels(data.y_train, 0.15, "symmetric", seed=seeds["flips"]).y
    pool = Training(300).shadow_models(
        (data.x_train, y), (data.x_test[:50], data.y_test[:50]), n_pool, seeds["shadows"]
    )
    correct = (pool.logits.argmax(-1) == pool.labels).to(torch.float64)
    masks = pool.masks.to(torch.float64)
    effect = ((correct * masks).sum(0) / masks.sum(0) - (correct * (1 - masks)).sum(0) / (1 - masks).sum(0)).numpy()
    rng = np.random.default_rng(seeds["draws"])
    announced, printed = np.zeros(len(effect)), []
    for draw in range(draws):
        scores = retraining_scores(pool.select(torch.from_numpy(rng.permutation(n_pool)[:n_models])), seed=draw)
        announced += scores.p_values < 0.01
        printed.append(retraining_power(scores, "").smallest_effect)
    smallest = float(np.mean([value for value in printed if value is not None]))
    rate = announced / draws
    return {
        "printed": smallest,
        "observed": _crossing(effect, rate, 0.8),
        "announced_at_1.5_times_or_1": float(rate[effect > min(1.5 * smallest, 0.97)].mean()),
        "announced_at_printed": float(rate[np.abs(effect - smallest) < 0.05].mean()),
        "announced_at_two_thirds": float(rate[np.abs(effect - smallest / 1.5) < 0.05].mean()),
    }


def _draw(seed: int, options: NullOptions) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return numbers of seen rows, audited "training" rows and test rows of digits, and all rows and labels."""
    data = digits(n_train=1796, seed=0)
    x, y = torch.cat([data.x_train, data.x_test]), torch.cat([data.y_train, data.y_test])
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(y)))
    a, b = options.n_seen, options.n_rows
    return order[:a], order[a : a + b], order[a + b : a + 2 * b], x, y


def _crossing(effect: np.ndarray, rate: np.ndarray, level: float) -> float:
    """Return the effect at which the monotone fit of the rate reaches the level; NaN if it does not."""
    from sklearn.isotonic import isotonic_regression

    order = np.argsort(effect, kind="stable")
    fitted = isotonic_regression(rate[order])
    reached = np.flatnonzero(fitted >= level)
    return float(effect[order][reached[0]]) if len(reached) else float("nan")


def _with_copies(x: Tensor, y: Tensor, options: NullOptions, seed: int) -> tuple[Tensor, Tensor]:
    """Replace a share of the rows by near-copies of the others, with their labels."""
    k = round(options.copied_share * len(y))
    generator = torch.Generator().manual_seed(seed)
    noise = options.copy_noise * torch.randn(k, x.shape[1], generator=generator)
    kept = len(y) - k
    source = torch.arange(k) % kept
    return torch.cat([x[:kept], x[source] + noise]), torch.cat([y[:kept], y[source]])
