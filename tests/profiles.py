"""Number of examples that hypothesis draws, relative to the profile that ``tests/conftest.py`` loads."""

from hypothesis import settings


def examples(share: float) -> settings:
    """Settings that draw ``share`` times the profile's number of examples: ``make test`` 20, ``make soak`` 1000.

    A fixed ``max_examples`` (or ``derandomize=True``) in a test would make ``make soak`` repeat ``make test``.
    """
    return settings(max_examples=max(1, round(settings().max_examples * share)))
