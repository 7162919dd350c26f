"""kernelmem.text.token_losses: defects of public implementations of losses of language models, each a test that fails there."""

import math

import pytest
import torch
from torch import nn

from kernelmem import InputError
from kernelmem.text import as_documents, causal_lm, token_losses
from tests.text.small_models import Attention, Bigram, Recurrent, Uniform, V, random_documents


def test_token_zero_is_a_word_and_not_padding():
    """Padding recognized by its id truncates documents that contain the word, or gives it probability 1."""
    model = Bigram()
    documents = [[0, 3, 0, 0], [0], [5, 0]]
    losses = token_losses(causal_lm(model, bos=V), documents)
    assert losses.counts.tolist() == [4, 1, 2]
    expected = -model.table[[V, 0, 3, 0], [0, 3, 0, 0]].log2()
    torch.testing.assert_close(losses.bits[0], expected, rtol=1e-13, atol=0)
    assert losses.token_bits.min() > 0


def test_padded_positions_have_no_loss():
    """Padding masked at the inputs instead of the targets scores one padding token per document."""
    padded = torch.tensor([[1, 2, 9, 9], [3, 9, 9, 9]])
    losses = token_losses(causal_lm(Uniform(), bos=0), as_documents(padded, lengths=[2, 1]))
    torch.testing.assert_close(losses.per_document(), torch.tensor([2.0, 1.0], dtype=torch.float64) * math.log2(V))


def test_first_and_last_token_are_scored():
    """A window of the likelihood that is shifted by one scores the last prefix token, not the last suffix token."""
    model = Bigram()
    ids = [4, 2, 7, 7, 1]
    losses = token_losses(causal_lm(model, bos=V), [ids], targets=[[False, False, True, True, True]])
    torch.testing.assert_close(losses.token_bits, -model.table[ids[1:-1], ids[2:]].log2(), rtol=1e-13, atol=0)
    assert losses.positions.tolist() == [2, 3, 4]


def test_greedy_tokens_of_other_documents_do_not_count():
    """Indexing all rows by the argmax of each marks a token as greedy if it is the argmax in any row of the batch."""
    lm = causal_lm(Recurrent(), bos=V)
    documents = random_documents(6, 6, 6, 6)
    together = token_losses(lm, documents).correct
    for ids, correct in zip(documents, together, strict=True):
        greedy = torch.stack([lm.next_log_probs([ids[:t]])[0].argmax() for t in range(len(ids))])
        assert torch.equal(correct, greedy == ids)


def test_document_mean_and_token_mean_are_both_told():
    """A mean of means weights tokens of short documents more; so does a mean over windows."""
    lm, documents = causal_lm(Recurrent().double(), bos=V), random_documents(2, 12)
    losses = token_losses(lm, documents)
    token_mean = losses.token_bits.mean()
    document_mean = torch.stack([bits.mean() for bits in losses.bits]).mean()
    assert abs(float(token_mean - document_mean)) > 1e-3
    assert f"{float(token_mean):.4g} over tokens, {float(document_mean):.4g} as mean of documents" in str(losses)
    windowed = token_losses(lm, documents, window=5, stride=5)  # the last window has 2 tokens
    assert windowed.counts.tolist() == [2, 12]
    torch.testing.assert_close(windowed.per_document(), torch.stack([bits.sum() for bits in windowed.bits]))


def test_sigma_of_certain_and_uniform_rows_is_zero():
    """An unclamped variance is negative there by rounding, and its root NaN."""
    model = Bigram()
    model.table[:] = 1 / V
    model.table[3] = 0
    model.table[3, 5] = 1  # after token 3 always token 5
    losses = token_losses(causal_lm(model, bos=V), [[3, 5, 5]])
    assert losses.token_sigma.tolist() == [0, 0, 0]
    assert losses.token_bits.tolist() == pytest.approx([math.log2(V), 0, math.log2(V)])
    for size in range(2, 40):  # 1 / size is rounded
        uniform = nn.Embedding.from_pretrained(torch.full((size, size), 0.1))
        assert token_losses(causal_lm(uniform), [[0, 1]]).token_sigma.tolist() == [0]


def test_left_padding_changes_nothing():
    """Positions that start at the padding shift those of the tokens: the loss of GPT-2 changes by .4 nats per document."""
    lm = causal_lm(Attention().double(), bos=V)
    left = {"input_ids": [[9, 9, 1, 2], [3, 4, 5, 6]], "attention_mask": [[0, 0, 1, 1], [1, 1, 1, 1]]}
    expected = token_losses(lm, [[1, 2], [3, 4, 5, 6]]).token_bits
    torch.testing.assert_close(token_losses(lm, left).token_bits, expected, rtol=0, atol=1e-12)


def test_shifted_labels_are_refused():
    with pytest.raises(InputError, match="not shifted"):
        token_losses(causal_lm(Uniform(), bos=0), [[1, 2, 3]], targets=[[2, 3, -100]])
