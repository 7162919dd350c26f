"""Records of one account per network, and their summaries over seeds."""

from collections.abc import Sequence

import pandas as pd
from torch import Tensor, nn

import kernelmem as km
from experiments.over_seeds import summary

__all__ = ["account_record", "cells_of"]


def account_record(model: nn.Module, x: Tensor, y: Tensor, *, reference: Tensor | str | None, seed: int) -> dict:
    """Return the numbers of an account, in bits, as a flat record."""
    account = km.account(model, (x, y), reference=reference, seed=seed, progress=False)
    return {
        "uniform": account.uniform,
        "online": account.online,
        "left_out": account.left_out,
        "network": account.network,
        "memorized": account.memorized,
        "noise_rate": account.noise_rate,
        "noise_rate_error": account.noise_rate_error,
        "noise": account.noise,
        "untrained": account.nulls["untrained network"],
    }


def cells_of(records: Sequence[dict], by: Sequence[str]) -> list[dict]:
    """Return one entry per value of the columns ``by``: mean, error and interval over seeds of every other number."""
    frame = pd.DataFrame(records)
    names = [name for name in frame.columns if name not in (*by, "seed")]
    return [
        dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True))
        | {name: summary(group[name].tolist()) for name in names}
        for key, group in frame.groupby(list(by), sort=False)
    ]
