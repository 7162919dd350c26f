"""Noise rates: memorized bits above those of clean labels compared with n H(r), the estimated rate, and the nulls."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

import kernelmem as km
from experiments.compression.networks import train_networks
from experiments.compression.noise_kinds import entropy_of_noise
from kernelmem.core import seed_sequence
from kernelmem.training import LabeledData, digits

__all__ = ["NoiseRates", "noise_rates"]

NULLS = {
    "untrained": "untrained network",
    "unseen": "network that did not see the row",
    "redrawn": "network trained on re-drawn labels",
}
"""Columns of the nulls, and their names in the account; the last two only where networks are trained for them."""


@dataclass(frozen=True)
class NoiseRates:
    """Digits with symmetric flips of several rates, one network per rate and seed, that fits every label.

    Attributes:
        null_rates: rates at which networks are also trained on halves of the rows and on re-drawn labels.
        references: the account is computed with each.
    """

    rates: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)
    null_rates: tuple[float, ...] = (0.0, 0.2)
    references: tuple[str, ...] = ("infinite_ntk", "initial_ntk")
    n_train: int = 1400
    width: tuple[int, ...] = (256, 256)
    steps: int = 300


def noise_rates(setting: NoiseRates, seed: int) -> Iterator[dict]:
    """Yield one record per reference and rate: the account, the slope, the error of the rate, and the nulls."""
    seeds = seed_sequence(seed, ["flips", "weights"])
    data = digits(n_train=setting.n_train, seed=seed)
    noisy = [km.corrupt_labels(data.y_train, rate, seed=seeds["flips"]) for rate in setting.rates]
    networks = train_networks(
        data,
        [labels.y for labels in noisy],
        [setting.width] * len(noisy),
        steps=setting.steps,
        seed=seeds["weights"],
    )

    def retrain(indices: Tensor, labels: Tensor, seed: int) -> nn.Module:
        part = LabeledData("digits", data.x_train[indices], labels, data.x_test, data.y_test)
        return train_networks(part, [labels], [setting.width], steps=setting.steps, seed=seed).models[0]

    for reference in setting.references:
        baseline = 0.0
        for rate, labels, model, error in zip(
            setting.rates, noisy, networks.models, networks.train_error.tolist(), strict=True
        ):
            with_nulls = retrain if rate in setting.null_rates and reference == setting.references[0] else None
            account = km.account(
                model, (data.x_train, labels.y), reference=reference, retrain=with_nulls, seed=seed, progress=False
            )
            assert account.memorized is not None
            assert account.noise_rate is not None
            truth = entropy_of_noise(labels, data.y_train)
            baseline = account.memorized if rate == 0 else baseline
            flipped = account.memorized_rows[labels.flipped]
            nulls = {column: account.nulls.get(name) for column, name in NULLS.items()}
            yield {
                "reference": reference,
                "rate": rate,
                "seed": seed,
                "train_error": error,
                "uniform": account.uniform,
                "online": account.online,
                "left_out": account.left_out,
                "network": account.network,
                "memorized": account.memorized,
                "true_noise": truth,
                "slope": (account.memorized - baseline) / truth if rate else None,
                "noise": account.noise,
                "noise_rate": account.noise_rate,
                "rate_bias": account.noise_rate - float(labels.flipped.double().mean()),
                "noise_rate_error": account.noise_rate_error,
                "on_flipped_rows": float(flipped.sum()),
                "on_clean_rows": float(account.memorized_rows.sum() - flipped.sum()),
                **nulls,
            }
