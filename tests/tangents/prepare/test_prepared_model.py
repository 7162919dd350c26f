"""kernelmem.tangents.prepare: the private copy, refusals, and modes and data that must not matter."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernelmem.core.batches import as_rows
from kernelmem.core.errors import InputError, KernelmemError, UnsupportedModelError, VerificationError
from kernelmem.kernels.ntk import ntk
from kernelmem.tangents.prepare import check_eval_mode, check_rows, prepare
from kernelmem.testing.cases import with_random_weights
from kernelmem.testing.closeness import assert_close, assert_exact
from kernelmem.testing.modules import Apply


def rows(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False)])
def test_train_mode_batch_norm_is_refused(norm):
    model = nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 2)).double().train()
    with pytest.raises(UnsupportedModelError, match="eval"):
        ntk(model, rows(4, 4))


def test_batch_norm_without_statistics_mixes_rows_even_in_eval_mode():
    model = with_random_weights(
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
    )
    with pytest.raises(KernelmemError):
        ntk(model, rows(4, 4))


class Mixes(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.inner, self.out, self.way = nn.Linear(4, 4), nn.Linear(4, 2), way

    def forward(self, x):
        h = torch.tanh(self.inner(x))
        if self.way == "center":
            h = h - h.mean(0)
        elif self.way == "attend":
            h = torch.softmax(h @ h.T, dim=1) @ h
        elif self.way == "shift":
            h = h + h.roll(1, dims=0)
        else:  # an attention layer that takes (n, d) for one sequence of n positions
            h = F.scaled_dot_product_attention(h[None], h[None], h[None])[0]
        return self.out(h)


@pytest.mark.parametrize("way", ["center", "attend", "shift", "sequence"])
def test_models_that_mix_rows_are_refused(way):
    with pytest.raises(VerificationError, match="mix"):
        ntk(with_random_weights(Mixes(way)), rows(5, 4))


def test_the_rows_are_not_written_over():
    """A first layer in place would write into the caller's tensor."""
    model, x = with_random_weights(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2))), rows(5, 4)
    before = x.clone()
    ntk(model, x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inside_no_grad_and_inference_mode(mode):
    """The caller's mode is no concern of the kernel's; rows that were made in it are fine too."""
    model, x = with_random_weights(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))), rows(3, 4)
    expected = ntk(model, x)
    with mode():
        found = ntk(model, 1.0 * x)
    assert_close(found, expected, 1e-14, float(expected.max()))


def test_rows_that_require_gradients():
    model, x = with_random_weights(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))), rows(3, 4)
    found = ntk(model, x.clone().requires_grad_())
    assert not found.requires_grad
    assert_close(found, ntk(model, x), 1e-14, float(found.max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float64_buffers_in_a_float32_model(dtype):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 2)
            self.register_buffer("scale", torch.tensor([0.5, 2.0], dtype=torch.float64))

        def forward(self, x):
            return self.inner(x) * self.scale.to(x.dtype)

    model, x = Mixed(), rows(3, 4).float()
    assert model.scale.dtype == torch.float64
    expected = 4.25 * (x.double() @ x.double().T + 1)
    assert_close(ntk(model, x, dtype=dtype), expected, 1e-6, float(expected.max()))
    assert model.scale.dtype == torch.float64


def test_integers_that_stand_for_numbers():
    model = with_random_weights(nn.Sequential(Apply(lambda x: x.double() / 255), nn.Linear(4, 2)))
    assert_exact(model, torch.randint(256, (3, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))


def network():
    return with_random_weights(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))


def test_the_copy_is_private():
    model, x = network(), as_rows(rows(5, 4))
    before = [p.detach().clone() for p in model.parameters()]
    model[0].weight.requires_grad_(False)
    prepared = prepare(model, x, dtype=torch.float32)
    with torch.no_grad():
        for parameter in prepared.module.parameters():
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert next(model.parameters()).dtype == torch.float64
    assert list(prepared.parameters) == ["0.bias", "2.weight", "2.bias"]
    assert (prepared.n_outputs, prepared.n_parameters, prepared.dtype) == (2, 3 + 6 + 2, torch.float32)
    assert not prepared.module[0].weight.requires_grad


def test_selected_parameters_in_the_order_of_the_model():
    prepared = prepare(network(), as_rows(rows(5, 4)), parameters=["2.bias", "0.weight"])
    assert list(prepared.parameters) == ["0.weight", "2.bias"]
    assert [p.requires_grad for p in prepared.module.parameters()] == [True, False, False, True]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"parameters": ["0.wait"]}, InputError, "0.wait"),
        ({"parameters": []}, InputError, "parameters"),
        ({"dtype": torch.float16}, InputError, "float16"),
        ({"forward": lambda model, batch: model(batch)[0]}, UnsupportedModelError, "shape"),
        ({"forward": lambda model, batch: model(batch).tolist()}, UnsupportedModelError, "list"),
        ({"forward": lambda model, batch: model(batch) + torch.rand(2, 1)}, UnsupportedModelError, "differ"),
        ({"forward": lambda model, batch: model(batch[:, :3])}, InputError, "does not accept"),
    ],
)
def test_refusals(options, error, words):
    with pytest.raises(error, match=words):
        prepare(network(), as_rows(rows(5, 4)), **options)


def test_evaluation_mode_of_the_copy_alone():
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 2)).double().train()
    with pytest.raises(UnsupportedModelError, match="Dropout"):
        check_eval_mode(model)
    prepared = prepare(model, as_rows(rows(5, 4)), evaluation=True)
    assert model.training
    assert not prepared.module.training


def test_other_rows_must_fit():
    prepared = prepare(network(), as_rows(rows(5, 4)))
    check_rows(prepared, as_rows(rows(3, 4)))
    with pytest.raises(InputError, match="does not accept"):
        check_rows(prepared, as_rows(rows(3, 5)))
    by_width = prepare(
        network(), as_rows(rows(5, 4)), forward=lambda model, batch: model(batch[:, :4])[:, : batch.shape[1] - 3]
    )
    with pytest.raises(InputError, match="1 outputs and rows y with 2"):
        check_rows(by_width, as_rows(rows(3, 5)))
