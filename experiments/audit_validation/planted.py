"""Audits of networks that fit 20 wrong labels among 1,000 rows, and of networks trained on the same rows without any."""

from dataclasses import dataclass

import torch

import kernelmem as km
from experiments.audit_validation.training import N_CLASSES, Training
from kernelmem.core import seed_sequence
from kernelmem.training import digits

__all__ = ["PlantedOptions", "measure_planted"]

TRAINING = Training(300)


@dataclass(frozen=True)
class PlantedOptions:
    """Sizes of the audits.

    Attributes:
        n_train: training rows; at most as many test rows.
        n_flips: wrong labels among them.
        n_models: shadow models of an audit.
        n_verified: rows that rank first and are left out one by one.
        training: training of networks and shadow models.
    """

    n_train: int = 1000
    n_flips: int = 20
    n_models: int = 48
    n_verified: int = 2
    training: Training = TRAINING


def measure_planted(seed: int, options: PlantedOptions = PlantedOptions()) -> dict[str, dict[str, float | None]]:
    """Audit a network with and a network without wrong labels by both methods: is memorization announced, and is it there?"""
    seeds = seed_sequence(seed, ["flips", "network", "shadows"])
    data = digits(n_train=options.n_train, seed=seed)
    x, training, test = data.x_train, options.training, (data.x_test[: options.n_train], data.y_test[: options.n_train])
    flips = km.corrupt_labels(data.y_train, options.n_flips / options.n_train, "symmetric", seed=seeds["flips"])
    nothing = torch.zeros_like(flips.flipped)
    results = {}
    for name, y, flipped in (("wrong labels", flips.y, flips.flipped), ("no wrong labels", data.y_train, nothing)):
        network = training.networks(x, y, [torch.arange(len(y))], [seeds["network"] % 2**31])[0]
        retrained = km.AuditOptions(
            n_classes=N_CLASSES, retrain=training.shadows, n_models=options.n_models, n_verified=options.n_verified
        )
        audits = {
            "retraining": km.audit(network, (x, y), test, seed=seeds["shadows"], options=retrained),
            "kernel": km.audit(network, (x, y), test, seed=seeds["shadows"], options=km.AuditOptions(n_classes=10)),
        }
        result: dict[str, float | None] = {"seed": seed}
        for method, audit in audits.items():
            how_much, flagged = audit.document.how_much, torch.from_numpy(audit.rows.flagged)
            result |= {
                f"{method}_announced": float(audit.document.verdict.status == "memorized"),
                f"{method}_p_value": how_much.p_value,
                f"{method}_share": how_much.fraction.value,
                f"{method}_low": how_much.fraction.low,
                f"{method}_high": how_much.fraction.high,
                f"{method}_flagged": int(flagged.sum()),
                f"{method}_flips_flagged": float(flagged[flipped].double().mean()) if flipped.any() else None,
            }
        verified = [
            row.verified_effect for row in audits["retraining"].document.rows if row.verified_effect is not None
        ]
        result |= {
            "verified": len(verified),
            "verified_above_zero": sum(effect.low > 0 for effect in verified),
            "verified_mean": sum(effect.value for effect in verified) / len(verified) if verified else None,
        }
        results[name] = result
    return results
