"""The audit validation on few rows and models."""

from experiments.audit_validation.run import CLAIMS, SETTINGS, Options, claims, measure


def test_every_number_is_measured_and_in_range():
    values = measure(SETTINGS[0], 0, Options(seeds=1, n_train=60, n_models=32, n_truth=32))
    assert set(CLAIMS) <= set(values)
    for name, value in values.items():
        assert -1 <= value <= 1, name


def test_claims_are_compared_with_the_results():
    cells = {"clean": {name: {"mean": least - 0.01} for name, (least, _) in CLAIMS.items()}}
    assert all(line.endswith("FAILS") for line in claims(cells))
