"""Valid calls of exposure, privacy bounds and statistics."""

import torch

from kernelmem import memorization, statistics
from kernelmem.memorization import CanaryCoverage
from tests.border.driver import Call

GENERATOR = torch.Generator().manual_seed(5)
SCORES, REFERENCES = (torch.randn(n, generator=GENERATOR, dtype=torch.float64) for n in (12, 30))
INCLUDED = torch.arange(12) % 2 == 0
REPETITIONS = torch.arange(12) % 3
COVERAGE = CanaryCoverage(3 * REPETITIONS, REPETITIONS)
P_VALUES = torch.rand(5, generator=GENERATOR, dtype=torch.float64)
LEVEL = {"level": 0.9}

CALLS = {
    "exposure": Call(
        memorization.exposure,
        lambda: (
            {"canary_scores": SCORES, "reference_scores": REFERENCES, "repetitions": REPETITIONS}
            | {"coverage": COVERAGE, **LEVEL}
        ),
    ),
    "canary_coverage": Call(
        memorization.canary_coverage,
        lambda: {"training": [torch.arange(4), torch.arange(3)], "canaries": [0, [1, 2], []]},
    ),
    "canary_coverage(counts)": Call(
        memorization.canary_coverage, lambda: {"training": {0: 3, 7: 2}, "canaries": torch.arange(3)}
    ),
    "one_run_bound": Call(
        memorization.one_run_bound,
        lambda: {"scores": SCORES, "included": INCLUDED, "delta": 1e-3, "guesses": 6, "seed": 0, **LEVEL},
        examples=0.5,
    ),
    "split_bound": Call(
        memorization.split_bound,
        lambda: {"in_scores": SCORES, "out_scores": REFERENCES, "delta": 0.0, "seed": 0, **LEVEL},
        examples=0.5,
    ),
    "clopper_pearson": Call(statistics.clopper_pearson, lambda: {"successes": 3, "trials": 9, **LEVEL}),
    "proportion_difference": Call(
        statistics.proportion_difference,
        lambda: {"successes": 3, "trials": 9, "other_successes": 2, "other_trials": 8, **LEVEL},
    ),
    "mean_interval": Call(statistics.mean_interval, lambda: {"values": SCORES, **LEVEL}),
    "auroc": Call(statistics.auroc, lambda: {"scores": SCORES, "flags": INCLUDED}),
    "auroc_standard_error": Call(statistics.auroc_standard_error, lambda: {"scores": SCORES, "flags": INCLUDED}),
    "auroc_interval": Call(statistics.auroc_interval, lambda: {"scores": SCORES, "flags": INCLUDED, **LEVEL}),
    "spearman": Call(statistics.spearman, lambda: {"a": SCORES, "b": REFERENCES[:12]}),
    "spearman_interval": Call(statistics.spearman_interval, lambda: {"a": SCORES, "b": REFERENCES[:12], **LEVEL}),
    "spearman_brown": Call(statistics.spearman_brown, lambda: {"r": 0.5, "factor": 2.0}),
    "attenuation_corrected": Call(
        statistics.attenuation_corrected, lambda: {"r": 0.5, "reliability_a": 0.8, "reliability_b": 0.9}
    ),
    "holm": Call(statistics.holm, lambda: {"p_values": P_VALUES}),
    "benjamini_hochberg": Call(statistics.benjamini_hochberg, lambda: {"p_values": P_VALUES}),
}
