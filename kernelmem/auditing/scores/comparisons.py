"""Scores compared with retraining, and with known wrong labels."""

import numpy as np
from torch import Tensor

from kernelmem.auditing.schema import Agreement, Flips, RowTable
from kernelmem.core.errors import InputError
from kernelmem.label_noise.detection import detect
from kernelmem.memorization.retraining import Retraining
from kernelmem.statistics import Interval

BITS = "memorized bits"


def agreements(table: RowTable, retrained: Retraining | None, seed: int) -> tuple[Agreement, ...]:
    """Return the rank agreement of the cheap scores with memorization by retraining; () without retraining."""
    if retrained is None:
        return ()
    cheap = {
        "negative leave-one-out margin": -table.loo_margin,
        "leave-one-out memorization of the label regression": table.label_memorization,
        "network minus surrogate margin": table.surrogate_difference,
        BITS: table.memorized_bits,
    }
    results = []
    for name, values in cheap.items():
        if np.isnan(values).any():
            continue
        try:
            result = retrained.agreement(values, seed=seed)
            results.append(Agreement(name, result.spearman, result.corrected, result.ceiling))
        except InputError:  # one of the two is constant
            results.append(Agreement(name, None, None, None))
    return tuple(results)


def flip_detection(table: RowTable, flipped: Tensor | None, seed: int) -> Flips:
    """Measure how well each score separates training rows with a known wrong label from the others.

    ``flipped`` (n,) is True where the label of a training row is wrong, and ``seed`` determines the permutations of the
    null. If flips are unknown, or if no row or every row is flipped, only the number of flips is returned. Apart from the
    count of suspected labels, no other function of the audit computes with ``flipped``.
    """
    if flipped is None or not 0 < int(flipped.sum()) < len(flipped):
        return Flips(n=None if flipped is None else int(flipped.sum()))
    by_margin = detect(-table.loo_margin, flipped, seed=seed)
    others = {"ranking score": table.score, "memorization by label regression": table.label_memorization}
    if not np.isnan(table.memorized_bits).any():
        others[BITS] = table.memorized_bits
    return Flips(
        n=by_margin.n_flipped,
        auroc=Interval(by_margin.auroc, *by_margin.auroc_interval, 0.95),
        other_aurocs=tuple(
            (name, detect(values, flipped, seed=seed, permutations=2).auroc) for name, values in others.items()
        ),
        permuted_auroc=by_margin.permuted_auroc,
        permuted_sd=by_margin.permuted_sd,
        precision=tuple(float(v) for v in by_margin.precision),
        recall=tuple(float(v) for v in by_margin.recall),
        ranks=tuple(int(v) for v in by_margin.ranks),
    )
