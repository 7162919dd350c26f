"""Language model of characters: stepwise states equal one pass; seeds."""

import pytest
import torch

from kernelmem.core import InputError
from kernelmem.text import CharacterLSTM
from tests.tolerances import summing


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_steps_from_states_equal_one_pass(dtype):
    model = CharacterLSTM(11, 5, 7, seed=3).to(dtype)
    ids = torch.randint(11, (3, 9), generator=torch.Generator().manual_seed(0))
    state, outputs = None, []
    with torch.no_grad():
        for tokens in ids.T:
            logits, state = model.step(tokens, state)
            outputs.append(logits)
        whole = model(ids)
        repeated = model.step(ids[[2, 2, 0], 0], tuple(part[[2, 2, 0]] for part in state))[0]
        after = model(torch.cat([ids, ids[:, :1]], 1))[[2, 2, 0], -1]
    eps = torch.finfo(dtype).eps / torch.finfo(torch.float64).eps
    bound = summing(9 * 7) * eps * float(whole.abs().max())
    assert (torch.stack(outputs, 1) - whole).abs().max() <= bound
    assert (repeated - after).abs().max() <= bound


def test_weights_depend_on_the_seed_only():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    a, b, c = (CharacterLSTM(11, 5, 7, seed=seed).head.weight for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_sizes_out_of_range_are_refused():
    for arguments in [(0,), (11, 0), (11, 5, -1), (11, 5, 2**20)]:
        with pytest.raises(InputError):
            CharacterLSTM(*arguments)
