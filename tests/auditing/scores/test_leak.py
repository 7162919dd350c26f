"""Tests of the attacks of an audit: a network that saw no row gives nothing away, also in the tails."""

import pytest
import torch

from kernelmem.auditing.scores.leak import with_test_rows
from kernelmem.memorization import ShadowEnsemble
from kernelmem.memorization.membership import MembershipOptions, attack_scores


@pytest.mark.parametrize("attack", ["calibrated", "lira"])
def test_the_number_of_models_of_a_row_does_not_tell_members_from_others(attack):
    """Outputs without any trace of training, few models without each training row: scores have one distribution."""
    generator = torch.Generator().manual_seed(0)
    m, n, t = 24, 4000, 4000
    masks = torch.rand(m, n, generator=generator).argsort(0) < 20  # 4 models without each row
    logits = torch.randn(m + 1, n + t, 2, generator=generator, dtype=torch.float64)
    labels = torch.randint(2, (n + t,), generator=generator)
    shadows = ShadowEnsemble.from_logits(
        masks, logits[:m, :n], labels[:n], test_logits=logits[:m, n:], test_labels=labels[n:]
    )
    pooled = with_test_rows(shadows, labels[n:], torch.arange(t), seed=1)
    assert set(pooled.masks[:, n:].sum(0).tolist()) == {20}
    scores = attack_scores(pooled, logits[m], attack=attack, seed=0, options=MembershipOptions(offline=True))
    for share in (0.01, 0.5, 0.99):  # of the non-members above, in both tails and in the middle
        above = float((scores[:n] > scores[n:].quantile(1 - share)).double().mean())
        assert abs(above - share) <= 5 * (2 * share * (1 - share) / n) ** 0.5
