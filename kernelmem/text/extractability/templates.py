"""Text that a rule continues without any memory: repetitions and progressions of numbers."""

import itertools
import re
from typing import Literal, TypeAlias

from kernelmem.core.checks import as_count, as_text

Template: TypeAlias = Literal["repetition", "progression", ""]


def text_template(text: str, *, terms: int = 4) -> Template:
    """Return the rule that a text follows: "repetition", "progression" or "".

    A repetition is one unit at least ``terms`` times in a row, the last one possibly cut. A progression has at least ``terms``
    whole numbers with one difference that is not 0 (of either sign), and equal text between them: "1, 2, 3, 4" and "9 7 5 3",
    but not "1, 10, 2", and not "9 5 1", since any three numbers of one difference would be one.

    Args:
        text: prefix and suffix of a window.
        terms: fewest units or numbers, at least 3.

    Raises:
        InputError: not text, or fewer than 3 terms.

    Source: templates that need no memorization, Prashanth et al. 2024; the rules: here.

    >>> [text_template(text) for text in ("ab ab ab ab a", "10, 8, 6, 4", "9 5 1", "1, 10, 2", "")]
    ['repetition', 'progression', '', '', '']
    """
    text, terms = as_text(text, "text"), as_count(terms, "terms", minimum=3)
    for period in range(1, len(text) // terms + 1):
        if text[period:] == text[:-period]:
            return "repetition"
    numbers = [int(number) for number in re.findall(r"\d{1,18}", text)]
    between = re.split(r"\d{1,18}", text)[1:-1]
    differences = {b - a for a, b in itertools.pairwise(numbers)}
    is_progression = len(numbers) >= terms and len(differences) == 1 and 0 not in differences
    return "progression" if is_progression and len(set(between)) == 1 else ""
