"""kernelmem.tangents.rules.layout: views of parameters, and tangents in the shape of the parameter."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.tangents.rules.layout import Layout, parameter_view
from tests.profiles import examples

VIEWS = [
    lambda w: w.transpose(0, -1),
    lambda w: w[None],
    lambda w: w[:, 1:],
    lambda w: w[::2],
    lambda w: w[1],
    lambda w: w.flatten(),
    lambda w: w.unsqueeze(-1).expand(*w.shape, 2),
    lambda w: w.movedim(0, -1),
    lambda w: w.unfold(-1, 2, 1),
    lambda w: w.diagonal(),
]


@examples(2)
@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    steps=st.lists(st.sampled_from(VIEWS), max_size=3),
    seed=st.integers(0, 99),
)
def test_views_are_recomputed_and_pulled_back_as_autograd_does(shape, steps, seed):
    """Any chain of views: the view itself, for one or several parameters, and the vector-Jacobian product."""
    parameter = torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    view = parameter
    for step in steps:
        try:
            view = step(view)
        except (RuntimeError, IndexError):  # too few axes, or not contiguous
            continue
    if view.numel() == 0 or (view._base is None and view is not parameter):
        return
    base, layout = parameter_view(view)
    assert base is parameter
    assert torch.equal(layout.view(parameter), view)
    assert torch.equal(layout.view(torch.stack([parameter, 2 * parameter])), torch.stack([view, 2 * view]))
    tangent = torch.randn(2, 3, *view.shape, generator=torch.Generator().manual_seed(seed))
    (expected,) = torch.autograd.grad(
        view.expand(2, 3, *view.shape), parameter, tangent, allow_unused=True, retain_graph=True
    )
    torch.testing.assert_close(layout.restore(tangent).sum((0, 1)), expected)
    entries = layout.view(torch.arange(parameter.numel()).reshape(shape)).flatten()
    if not layout.repeats:
        assert len(entries.unique()) == len(entries)
    assert layout.is_whole == (view.shape == parameter.shape and torch.equal(entries, torch.arange(len(entries))))


def test_axes_are_permuted_before_the_result_is_reshaped():
    parameter = torch.nn.Parameter(torch.arange(24.0).reshape(2, 3, 4))
    layout = Layout.whole(parameter).arranged((2, 0, 1), (4, 6))
    expected = parameter.permute(2, 0, 1).reshape(4, 6)
    assert torch.equal(layout.view(parameter), expected)
    assert torch.equal(layout.restore(expected.expand(1, 1, 4, 6))[0, 0], parameter)


def test_tensors_that_are_computed_are_not_views():
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    for computed in (2 * parameter, parameter.T.contiguous(), (2 * parameter).T, parameter[torch.tensor([0, 1])]):
        assert parameter_view(computed) == (computed, None)
