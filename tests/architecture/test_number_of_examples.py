"""Every property test draws more examples in `make soak`, and other ones in every run of it."""

import re
from pathlib import Path

from hypothesis import settings

from tests.profiles import examples

TESTS = Path(__file__).parents[1]
FIXED = re.compile(r"max_examples\s*=\s*\d|derandomize\s*=\s*True|@seed\(|@settings\(")


def test_no_test_fixes_its_examples():
    texts = {path.relative_to(TESTS).as_posix(): path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py")}
    del texts[Path(__file__).relative_to(TESTS).as_posix()]
    assert {name: FIXED.findall(text) for name, text in texts.items() if FIXED.search(text)} == {}


def test_shares_follow_the_profile():
    profile = settings.get_profile("soak")
    assert not profile.derandomize
    assert profile.max_examples >= 20 * settings.get_profile("default").max_examples
    assert examples(0.5).max_examples == max(1, round(settings().max_examples / 2))
