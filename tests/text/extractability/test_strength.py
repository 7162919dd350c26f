"""Extraction strength compared with greedy decoding from every prefix; a defect of another tool."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.text import extraction, extraction_strength, token_losses
from tests.profiles import examples
from tests.text.extractability.models import pair_lm


@given(seed=st.integers(0, 999))
@examples(0.1)
def test_it_is_one_minus_the_shortest_prefix_that_elicits_the_rest(seed):
    rng, lm = np.random.default_rng(seed), pair_lm(seed)
    ids: list[int] = rng.integers(0, 5, 2).tolist()
    while len(ids) < 6:
        ids.append(int(lm.next_log_probs([ids])[0].argmax()))
    ids[int(rng.integers(6))] = int(rng.integers(5))
    elicits = [bool(extraction(lm, [ids], prefix=k, suffix=6 - k).extracted()) for k in range(1, 6)]
    shortest = next((k for k, emitted in enumerate(elicits, 1) if emitted), 6)
    if shortest == 1 and int(lm.next_log_probs([[]])[0].argmax()) == ids[0]:
        shortest = 0
    strength = extraction_strength(token_losses(lm, [ids, ids[:0]]))
    torch.testing.assert_close(strength, torch.tensor([1 - shortest / 6, 0.0], dtype=torch.float64), rtol=0, atol=1e-15)


def test_nothing_right_is_zero():
    """Another tool gives 1 / N to a document of which nothing is emitted."""
    lm = pair_lm(0)
    wrong = int(lm.next_log_probs([[1, 2]])[0].argmin())
    assert extraction_strength(token_losses(lm, [[1, 2, wrong]])).tolist() == [0.0]
