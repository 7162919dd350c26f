"""Templates: rules that continue a text without memory, and what is none; defects of other tools."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core import InputError
from kernelmem.text import text_template
from tests.profiles import examples


@given(
    first=st.integers(100, 200),
    step=st.integers(-9, 9),
    between=st.sampled_from([", ", " ", "\n- ", "."]),
    changed=st.integers(0, 4),
    by=st.integers(1, 3),
)
@examples(1.0)
def test_five_numbers_are_a_progression_until_one_changes(first, step, between, changed, by):
    numbers = [first + i * step for i in range(5)]
    assert text_template(between.join(map(str, numbers))) == ("progression" if step else "repetition")
    numbers[changed] += by
    if changed in (1, 2, 3) or step:
        assert text_template(between.join(map(str, numbers))) == ""


@given(unit=st.text("ab", min_size=1, max_size=3), times=st.integers(2, 6), cut=st.integers(0, 2))
@examples(1.0)
def test_a_unit_in_a_row_is_a_repetition(unit, times, cut):
    text = unit * times + unit[:cut]
    assert text_template(text + "c") == ""
    if times >= 4:
        assert text_template(text) == "repetition"


@pytest.mark.parametrize("text", ["1, 10, 2", "9 5 1", "1 2 4 8 16", "1, 2; 3, 4", "5 5 5 6", "", "a", "7"])
def test_these_are_no_templates(text):
    """Other tools take [1, 10, 2] and "9 5 1" for incrementing numbers: three terms, and differences without sign."""
    assert text_template(text) == ""


def test_other_arguments_are_refused():
    for text, terms in ((7, 4), ("1 2 3", 2), ("\ud800", 4)):
        with pytest.raises(InputError):
            text_template(text, terms=terms)
