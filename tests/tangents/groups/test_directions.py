"""kernelmem.tangents.groups.directions: cotangents, result shapes and targets."""

import pytest
import torch
import torch.nn.functional as F

from kernelmem.core.errors import InputError
from kernelmem.tangents.groups.directions import OutputDirections, named_target


def rows(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cotangents_of_each_kind():
    outputs = rows(3, 4)
    one_hot = OutputDirections("trace", 4).cotangents(outputs, [1, 3], None)
    assert torch.equal(one_hot, torch.eye(4, dtype=torch.float64)[[1, 3]].expand(3, 2, 4))
    pseudo = OutputDirections("pseudo", 4).cotangents(outputs, [0], None)
    assert torch.equal(pseudo, torch.full((3, 1, 4), 0.5, dtype=torch.float64))
    target = OutputDirections("target", 4, lambda f, labels: (f**2).sum(1)).cotangents(outputs, [0], None)
    torch.testing.assert_close(target[:, 0], 2 * outputs)
    constant = OutputDirections("target", 4, lambda f, labels: torch.ones(len(f))).cotangents(outputs, [0], None)
    assert not bool(constant.any())


@pytest.mark.parametrize(
    ("outputs", "k", "combine", "shape", "public"),
    [
        ("trace", 3, "sum", (5, 6), (5, 6)),
        ("pseudo", 1, "sum", (5, 6), (5, 6)),
        ("target", 1, "sum", (5, 6), (5, 6)),
        ("diagonal", 3, "diagonal", (3, 5, 6), (5, 6, 3)),
        ("full", 3, "full", (5, 3, 6, 3), (5, 6, 3, 3)),
    ],
)
def test_shapes_of_each_kind(outputs, k, combine, shape, public):
    directions = OutputDirections(outputs, 3)
    assert (directions.k, directions.combine, directions.result_shape(5, 6)) == (k, combine, shape)
    assert directions.public(torch.zeros(shape)).shape == public


def test_named_targets_by_their_formulas():
    outputs, labels = rows(3, 4), torch.tensor([0, 3, 1])
    assert torch.equal(named_target(("logit", 2))(outputs, None), outputs[:, 2])
    torch.testing.assert_close(
        named_target("loss")(outputs, labels), F.cross_entropy(outputs, labels, reduction="none")
    )
    others = [
        max(f for k, f in enumerate(row) if k != y) for row, y in zip(outputs.tolist(), labels.tolist(), strict=True)
    ]
    expected = outputs[torch.arange(3), labels] - torch.tensor(others, dtype=torch.float64)
    torch.testing.assert_close(named_target("margin")(outputs, labels), expected)


def test_one_logit_of_two_classes_is_the_outputs_zero_and_the_logit():
    logit, labels = rows(5, 1), torch.tensor([0, 1, 1, 0, 1])
    both = torch.cat([torch.zeros_like(logit), logit], 1)
    for target in ("margin", "loss"):
        function = named_target(target)
        torch.testing.assert_close(function(logit, labels), function(both, labels), rtol=0, atol=0)
        gradient = OutputDirections("target", 1, function).cotangents(logit, [0], labels)
        expected = OutputDirections("target", 2, function).cotangents(both, [0], labels)[:, :, 1:]
        torch.testing.assert_close(gradient, expected, rtol=0, atol=0)
    torch.testing.assert_close(named_target("margin")(logit, labels), (2 * labels - 1) * logit[:, 0], rtol=0, atol=0)


@pytest.mark.parametrize("target", ["magin", ("logit", 1.0), ("logit",), 3], ids=str)
def test_unknown_targets_are_refused(target):
    with pytest.raises(InputError, match="target="):
        named_target(target)


@pytest.mark.parametrize(
    ("target", "outputs", "labels"),
    [
        (("logit", 4), rows(3, 4), None),
        ("loss", rows(3, 4), None),
        ("loss", rows(3, 1), torch.tensor([0, 1, 2])),
        ("margin", rows(3, 4), torch.tensor([0, 1, 4])),
    ],
)
def test_targets_that_do_not_fit_are_refused(target, outputs, labels):
    with pytest.raises(InputError):
        named_target(target)(outputs, labels)


def test_a_target_of_another_shape_is_refused():
    with pytest.raises(InputError, match="one number per row"):
        OutputDirections("target", 4, lambda f, labels: f).cotangents(rows(3, 4), [0], None)
