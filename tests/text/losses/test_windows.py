"""kernelmem.text.losses.windows: every target once, in the context that window and stride promise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem import InputError
from kernelmem.text import causal_lm, token_losses
from tests.profiles import examples
from tests.text.small_models import Attention, Recurrent, V

LMS = {bos: causal_lm(Recurrent().double(), bos=bos) for bos in (V, None)}


@st.composite
def windows(draw):
    """Documents, window, stride, BOS or none."""
    bos = draw(st.sampled_from([V, None]))
    window = draw(st.integers(1 if bos else 2, 8))
    stride = draw(st.integers(1, window if bos else window - 1))
    documents = draw(st.lists(st.lists(st.integers(0, V - 1), max_size=12), min_size=1, max_size=3))
    return documents, window, stride, bos


@examples(0.7)
@given(windows())
def test_every_target_once_in_its_window(drawn):
    """The slow definition: token t is predicted by the first window k s ... k s + W that reaches it."""
    documents, window, stride, bos = drawn
    losses = token_losses(LMS[bos], documents, window=window, stride=stride)
    first = 0 if bos else 1
    for ids, bits, positions in zip(documents, losses.bits, losses.split(losses.positions), strict=True):
        assert positions.tolist() == list(range(first, len(ids)))
        starts = [max(0, math.ceil((t + 1 - window) / stride)) * stride for t in range(first, len(ids))]
        contexts = [t - start for t, start in zip(range(first, len(ids)), starts, strict=True)]
        assert all(min(t, window - stride) <= c < window for t, c in zip(range(first, len(ids)), contexts, strict=True))
        if len(ids) > first:
            prefixes = [ids[start:t] for t, start in zip(range(first, len(ids)), starts, strict=True)]
            expected = LMS[bos].next_log_probs(prefixes)[range(len(prefixes)), ids[first:]] / -math.log(2)
            torch.testing.assert_close(bits, expected, rtol=0, atol=1e-12)


@examples(0.4)
@given(st.lists(st.integers(0, V - 1), min_size=1, max_size=12), st.integers(1, 5))
def test_stride_one_is_the_loop_and_a_long_window_is_one_pass(ids, window):
    lm = LMS[V]
    loop = [token_losses(lm, [ids[max(0, t - window + 1) : t + 1]]).token_bits[-1] for t in range(len(ids))]
    bits = token_losses(lm, [ids], window=window, stride=1).token_bits
    torch.testing.assert_close(bits, torch.stack(loop), rtol=0, atol=1e-12)
    once = token_losses(lm, [ids]).token_bits
    torch.testing.assert_close(token_losses(lm, [ids], window=len(ids) + 3).token_bits, once, rtol=0, atol=0)


def test_masked_tokens_stay_context():
    ids, mask = [1, 2, 3, 4, 5, 6], [False] * 4 + [True, True]
    everything = token_losses(LMS[V], [ids], window=4, stride=2).token_bits
    torch.testing.assert_close(
        token_losses(LMS[V], [ids], targets=[mask], window=4, stride=2).token_bits, everything[4:]
    )


def test_windows_read_documents_that_are_too_long_for_one_pass():
    lm = causal_lm(Attention(), bos=V)
    ids = [k % V for k in range(40)]
    with pytest.raises(TypeError, match=r"window"):
        token_losses(lm, [ids])
    losses = token_losses(lm, [ids], window=16)
    assert losses.stride == 8
    assert len(losses.token_bits) == 40
    assert "windows of 16, stride 8" in str(losses)


def test_a_window_without_bos_needs_context():
    for options in ({"window": 1}, {"window": 3, "stride": 3}):
        with pytest.raises(InputError):
            token_losses(LMS[None], [[1, 2, 3]], **options)
