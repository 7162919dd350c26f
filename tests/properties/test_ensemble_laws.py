"""Laws of training many networks in one batch: a member does not depend on the other members."""

from dataclasses import replace
from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.training.batching import BatchOrder
from kernelmem.training.ensemble.members import EnsembleOptions, Member, as_task
from kernelmem.training.ensemble.ragged_layout import PADDING, chunks, padded_stacks
from kernelmem.training.ensemble.recipe import Recipe
from kernelmem.training.ensemble.train import train_mlps, train_one
from kernelmem.training.mlp import mlp
from tests.profiles import examples

N, D, C = 30, 4, 3
X, X_TEST = (torch.randn(n, D, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (N, 8))
Y_TEST = torch.arange(8) % C
OPTIONS = EnsembleOptions(evaluate_at=(0,), dtype=torch.float64, n_classes=C, keep_outputs=True, keep_parameters=True)

seeds = st.integers(0, 3)


@st.composite
def members(draw, at_least=1):
    found = []
    for _ in range(draw(st.integers(at_least, 6))):
        width = draw(st.one_of(st.integers(1, 24), st.tuples(st.integers(1, 9), st.integers(1, 9))))
        n, subset = draw(st.sampled_from([1, 5, 8, 9, 27, 30])), draw(seeds)
        rows = torch.randperm(N, generator=torch.Generator().manual_seed(subset))[:n]
        labels = torch.randint(C, (n,), generator=torch.Generator().manual_seed(draw(seeds)))
        found.append(Member(width, rows, labels, draw(seeds), draw(seeds)))
    return found


@st.composite
def recipes(draw):
    optimizer = draw(st.sampled_from(["adam", "adamw", "sgd"]))
    return Recipe(
        optimizer,
        lr=draw(st.sampled_from([0.0, 0.003, 0.03])),
        momentum=draw(st.sampled_from([0.0, 0.9])) if optimizer == "sgd" else 0.0,
        weight_decay=draw(st.sampled_from([0.0, 0.05])),
        schedule=draw(st.sampled_from(["constant", "wsd", "cosine"])),
        batch_size=draw(st.sampled_from([None, 1, 8, 100])),
        steps=draw(st.integers(1, 15)),
        loss=draw(st.sampled_from(["cross_entropy", "mse"])),
        activation=draw(st.sampled_from(["relu", "tanh", "gelu"])),
        depth=draw(st.integers(1, 2)),
    )


def trained(networks, recipe, **options):
    return train_mlps(networks, X, test=(X_TEST, Y_TEST), recipe=recipe, options=replace(OPTIONS, **options))


def assert_same(a, k, b, j):
    for one, other in zip(a.metrics, b.metrics, strict=True):
        torch.testing.assert_close(one.logits[k], other.logits[j], rtol=1e-9, atol=1e-9)
        for name in ("train_loss", "test_loss", "train_error", "test_error"):
            torch.testing.assert_close(getattr(one, name)[k], getattr(other, name)[j], rtol=1e-9, atol=1e-9)
    for name, value in a.parameters[k].items():
        torch.testing.assert_close(value, b.parameters[j][name], rtol=1e-9, atol=1e-9)


@examples(0.625)
@given(members(), recipes())
def test_a_member_equals_its_plain_loop(networks, recipe):
    many = trained(networks, recipe)
    one = networks[-1]
    widths = (one.width,) * recipe.depth if isinstance(one.width, int) else one.width
    model = mlp(D, widths, C, recipe.activation, seed=one.init_seed)
    loop = train_one(model, one, X, test=(X_TEST, Y_TEST), recipe=recipe, options=OPTIONS)
    assert_same(many, len(networks) - 1, loop, 0)


@examples(0.625)
@given(members(at_least=2), recipes(), st.data())
def test_other_members_order_and_chunks_do_not_matter(networks, recipe, data):
    many = trained(networks, recipe)
    order = data.draw(st.permutations(range(len(networks))))
    shuffled = trained([networks[k] for k in order], recipe)
    for place, k in enumerate(order):
        assert_same(many, k, shuffled, place)
    task = as_task(networks, X, test=(X_TEST, Y_TEST), recipe=recipe, options=OPTIONS)
    largest = 100_000
    assert len(list(chunks(task, 2**30, 8))) == 1
    cut = trained(networks, recipe, memory=largest)
    alone = trained([networks[order[0]]], recipe)
    assert_same(many, order[0], alone, 0)
    for k in range(len(networks)):
        assert_same(many, k, cut, k)


@given(members(), recipes(), st.sampled_from([100_000, 2**20, 2**30]))
def test_every_member_is_placed_once_and_padding_is_bounded(networks, recipe, memory):
    task = as_task(networks, X, test=(X_TEST, Y_TEST), recipe=recipe, options=OPTIONS)
    places = []

    def work(widths):
        sizes = [(D, *slot, C) for slot in widths]
        return sum(a * b for slot in sizes for a, b in pairwise(slot))

    for part in chunks(task, memory, 8):
        for stack in padded_stacks(part, D, C):
            own = 0
            for group in stack.groups:
                places += group.members
                own += group.batch * work(group.widths)
                assert group.batch <= stack.batch
                assert (group.batch == group.n) == stack.full
                for k, own_widths, padded in zip(group.members, group.widths, stack.widths, strict=True):
                    width = networks[k].width
                    assert own_widths == ((width,) * recipe.depth if isinstance(width, int) else width)
                    assert all(a <= b for a, b in zip(own_widths, padded, strict=True))
                    assert torch.equal(networks[k].rows, networks[group.members[0]].rows)
                    assert stack.full or networks[k].order_seed == networks[group.members[0]].order_seed
            assert stack.batch * work(stack.widths) * len(stack.groups) <= PADDING * own
    assert sorted(places) == list(range(len(networks)))


@given(st.integers(0, 2**40), st.integers(1, 40), st.integers(1, 50), st.integers(1, 7), st.integers(1, 7))
def test_batches_do_not_depend_on_how_many_are_drawn_at_once(seed, n, batch, first, then):
    together = BatchOrder(seed, n, batch).take(first + then)
    order = BatchOrder(seed, n, batch)
    assert torch.equal(torch.cat([order.take(first), order.take(then)]), together)
    assert together.shape == (first + then, min(batch, n))
    counts = torch.bincount(together.flatten(), minlength=n)
    assert int(counts.max() - counts.min()) <= 1
