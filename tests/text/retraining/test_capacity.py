"""Capacity: a valid code for the whole set, fresh strings that read nothing, and what is refused."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kernelmem.core import InputError, UnsupportedModelError
from kernelmem.text import Capacity, TextTraining, capacity
from kernelmem.text.retraining.capacity import FLOORS, TEMPERATURES, code_length, expert_losses
from tests.profiles import examples


def table(V, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    model = nn.Embedding(V + 1, V, dtype=dtype)
    with torch.no_grad():
        model.weight *= 5
    return model


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_the_code_is_valid(dtype, tolerance):
    """Kraft's sum over all sets of two strings of two symbols is 1, also after the experts are mixed."""
    V, S, N = 3, 2, 2
    strings = torch.tensor(list(product(range(V), repeat=S)))
    ids = torch.cat([torch.full((len(strings), 1), V), strings], 1)
    bits = expert_losses(table(V, dtype=dtype), {"input_ids": ids}).detach() / math.log(2)
    sums = bits[:, None] + bits[None]  # of all pairs of strings
    total = float((-code_length(sums, N * S * math.log2(V))).exp2().sum())
    assert total == pytest.approx(1, abs=tolerance)


def test_experts_are_tempered_and_floored():
    model, ids = table(4), torch.tensor([[4, 1, 2, 2], [4, 0, 3, 1]])
    values = expert_losses(model, {"input_ids": ids})
    e = 0
    for temperature in TEMPERATURES:
        for floor in FLOORS:
            p = (1 - floor) * (model(ids) / temperature).softmax(2) + floor / 4
            expected = -p[:, :-1].gather(2, ids[:, 1:, None])[..., 0].log().sum(1)
            torch.testing.assert_close(values[:, e].detach(), expected.detach(), rtol=1e-12, atol=0)
            e += 1
    assert values.shape[1] == e


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=5), st.floats(0, 1e6))
@examples(0.5)
def test_the_mixture_costs_at_most_its_weights(lengths, uniform):
    length = float(code_length(torch.tensor(lengths), uniform))
    slack = 1e-9 * (1 + uniform + max(lengths)) + 1e-6 * max(lengths)  # lengths come in float32
    assert length <= uniform + 1 + slack
    assert length <= min(lengths) + math.log2(2 * len(lengths)) + slack
    assert length >= min(*lengths, uniform) - slack


def test_a_string_is_memorized_and_fresh_ones_are_not():
    result = capacity(
        lambda: nn.Embedding(65, 64), strings=[1, 8], length=4, steps=40,
        recipe=TextTraining(batch=8, lr=0.5, weight_decay=0.0), progress=False,
    )  # fmt: skip
    # a string of different symbols has a table that gives it probability 1; the weight of an expert, 5 bits, is paid
    assert 24 - 5.2 < float(result.memorized[0].max()) < 24
    assert bool((result.memorized <= result.information[:, None]).all())
    assert bool((result.fresh >= -1 - 1e-9).all())
    assert float(result.fresh.max()) < 10  # probability 2^-10
    assert result.parameters == 65 * 64
    assert result.steps.tolist() == [40, 40]


def made(memorized, strings=(100, 200, 400)):
    values = torch.tensor(memorized, dtype=torch.float64)[:, None].expand(-1, 2).clone()
    return Capacity(
        torch.tensor(strings), values, -torch.ones_like(values), 100, 2, 10, torch.tensor([5] * len(strings)),
        TextTraining(), "",
    )  # fmt: skip


def test_the_plateau_is_that_of_its_definition():
    assert made([390.0, 400.0, 395.0]).plateau is True  # 1000, 2000, 4000 bits: 2.5, 5 and 10 times 400
    assert made([390.0, 400.0, 300.0]).plateau is False
    assert made([900.0, 1000.0, 990.0]).plateau is None
    assert made([-1.0, -1.0, -1.0]).plateau is None
    assert "no plateau" in str(made([390.0, 400.0, 300.0]))
    assert "lower bound limited by training" in str(made([390.0, 400.0, 395.0]))


def test_result_is_saved_printed_and_drawn(tmp_path):
    result = made([390.0, 400.0, 395.0])
    again = Capacity.load(result.save(tmp_path / "a.safetensors"))
    assert str(again) == str(result)
    assert "at least 4" in str(result)
    assert result.to_frame()["per_parameter"].tolist() == [3.9, 4.0, 3.95]
    assert len(result.plot().axes[0].lines) == 8


@pytest.mark.parametrize(
    ("make_model", "changes", "error", "message"),
    [
        (lambda: nn.Embedding(4, 4), {}, UnsupportedModelError, "fails"),
        (lambda: nn.Embedding(5, 3), {}, UnsupportedModelError, "at least 4 logits"),
        (lambda: 3, {}, UnsupportedModelError, "int"),
        (lambda: nn.Embedding(5, 4), {"strings": []}, InputError, "strings"),
        (lambda: nn.Embedding(5, 4), {"strings": [3, 3]}, InputError, "strings"),
        (lambda: nn.Embedding(5, 4), {"strings": [0]}, InputError, "strings"),
        (lambda: nn.Embedding(5, 4), {"symbols": 1}, InputError, "symbols"),
        (lambda: nn.Embedding(5, 4), {"memory": 10}, InputError, "memory"),
    ],
)
def test_what_is_refused(make_model, changes, error, message):
    with pytest.raises(error, match=message):
        capacity(make_model, **({"strings": [3], "symbols": 4, "length": 2, "steps": 1} | changes), progress=False)
