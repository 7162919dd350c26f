"""Prefixes that are extended from the state of the model: equal to reading them again; what is refused."""

import copy
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn

from kernelmem import UnsupportedModelError
from kernelmem.text import causal_lm
from kernelmem.text.language_models import read_prefixes
from tests.text.small_models import Attention, Recurrent, Stepping, V


class Box(NamedTuple):
    hidden: object


@dataclass
class Attributes:
    hidden: object


class Wrapped(Stepping):
    """Model with a state of another form."""

    def __init__(self, wrap, unwrap, **options):
        super().__init__(**options)
        self.wrap, self.unwrap = wrap, unwrap

    def step(self, tokens, state):
        logits, state = super().step(tokens, None if state is None else self.unwrap(state))
        return logits, self.wrap(state)


MODELS = {
    "LSTM": Stepping,
    "GRU": lambda: Stepping(nn.GRU, num_layers=2),
    "list": lambda: Wrapped(list, tuple),
    "dict": lambda: Wrapped(lambda s: {"h": s[0], "c": s[1], "note": 3}, lambda s: (s["h"], s["c"])),
    "named tuple": lambda: Wrapped(Box, lambda s: s.hidden),
    "object": lambda: Wrapped(Attributes, lambda s: s.hidden),
    "buffer": lambda: Wrapped(lambda s: (s, torch.zeros(2)), lambda s: s[0]),  # a tensor without documents
}


def assert_extended_as_read_again(lm, *, dtype=torch.float64, tolerance=1e-12):
    """Extend prefixes twice, some rows repeated, and compare with passes over whole documents."""
    ids = torch.randint(V, (4, 6), generator=torch.Generator().manual_seed(3))
    prefixes, log_p = read_prefixes(lm, ids[:, :3], dtype=dtype, memory="1GiB")
    for rows in (torch.tensor([1, 3, 3, 0, 2]), torch.tensor([2])):  # both from the same state
        longer, first = prefixes.extend(rows, ids[rows, 3])
        places = torch.arange(len(rows)).flip(0)
        second = longer.extend(places, ids[rows[places], 4])[1]
        for found, documents in (
            (log_p, ids[:, :3]),
            (first, ids[rows, :4]),
            (second, ids[rows[places], :5]),
        ):
            torch.testing.assert_close(found, lm.next_log_probs(documents, dtype=dtype), rtol=0, atol=tolerance)
    return prefixes


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("bos", [None, V])
def test_states_give_what_whole_documents_give(name, bos):
    lm = causal_lm(MODELS[name](), bos=bos)
    assert assert_extended_as_read_again(lm).stepper is not None
    assert_extended_as_read_again(lm, dtype=torch.float32, tolerance=1e-5)


def test_a_step_function_and_models_without_states():
    plain = Recurrent().double()

    def step(model, tokens, state):
        hidden, state = model.layer(model.embedding(tokens[:, None]), state)
        return model.head(hidden[:, 0]), state

    assert assert_extended_as_read_again(causal_lm(plain, step=step)).stepper is not None
    forward = lambda model, ids: model.head(model.layer(model.embedding(ids))[0])  # noqa: E731
    assert assert_extended_as_read_again(causal_lm(plain, step=step, forward=forward)).stepper is not None
    for lm in (causal_lm(plain), causal_lm(Stepping(), forward=forward), causal_lm(Attention())):
        assert assert_extended_as_read_again(lm).stepper is None


def growing(model, tokens, state):
    logits, inner = model.step(tokens, state[0])
    return logits, [inner, *state[1:], tokens]


WRONG_STEPS = {
    "forgets the state": lambda model, tokens, state: model.step(tokens, None),
    "other scale": lambda model, tokens, state: (model.step(tokens, state)[0] * 1.01, model.step(tokens, state)[1]),
    "no state": lambda model, tokens, state: model.step(tokens, state)[0],
    "other shape": lambda model, tokens, state: (model.step(tokens, state)[0][:, None], None),
    "fails": lambda model, tokens, state: model.nothing,
    "a tensor more after every token": lambda model, tokens, state: growing(model, tokens, state or [None]),
    "an axis that is too short": lambda model, tokens, state: (model.step(tokens, None)[0], tokens[1:]),
    "other dimensions": lambda model, tokens, state: (
        model.step(tokens, None)[0],
        torch.zeros([1] * len(tokens)),
    ),
    "no batch axis": lambda model, tokens, state: (
        model.step(tokens, None)[0],
        torch.zeros(len(tokens), len(tokens)),
    ),
}


@pytest.mark.parametrize("name", WRONG_STEPS)
def test_a_step_that_gives_other_logits_is_refused_and_a_method_not_used(name):
    step = WRONG_STEPS[name]
    with pytest.raises(UnsupportedModelError):
        causal_lm(Stepping(), step=step)

    class Wrong(Recurrent):
        def step(self, tokens, state):
            return step(self.inner, tokens, state)

    model = Wrong()
    model.inner = copy.deepcopy(Stepping())
    assert assert_extended_as_read_again(causal_lm(model)).stepper is None


def test_a_method_of_another_kind_is_not_called():
    class Trainer(Recurrent):
        def step(self):
            raise AssertionError

    assert assert_extended_as_read_again(causal_lm(Trainer())).stepper is None
