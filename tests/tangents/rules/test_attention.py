"""kernelmem.tangents.rules.attention: outputs of torch up to rounding, transformer layers on the fast path."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.overrides import TorchFunctionMode

from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk
from kernelmem.tangents.rules.attention import AttentionRule
from kernelmem.testing.cases import with_random_weights
from kernelmem.testing.closeness import assert_close, assert_exact, scale_of
from kernelmem.testing.modules import Apply
from tests.profiles import examples


def rows(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_transformer_encoder_on_its_fast_path(frozen, nested):
    """In eval mode, where nothing of a layer requires a gradient, torch fuses the layer and hides its weights."""
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=5, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
    model = with_random_weights(nn.Sequential(nn.Linear(4, 4), encoder, Apply(lambda h: h.mean(1)), nn.Linear(4, 2)))
    if frozen:
        encoder.layers[0].requires_grad_(False)
    x, names = rows(3, 3, 4), [name for name, p in model.named_parameters() if p.requires_grad]
    left = reference.jacobian(model, x, parameters=names)
    assert_close(ntk(model, x), reference.kernel_of(left, left), 1e-10, scale_of(left))
    assert_close(
        ntk(model, x, parameters=names[-2:]),
        reference.kernel_of(*2 * [reference.jacobian(model, x, parameters=names[-2:])]),
        1e-10,
        scale_of(left),
    )


class Decompose(TorchFunctionMode):
    """Runs the decomposition instead of torch's function, and counts the calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = (
            AttentionRule().expand(func, args, kwargs) if func is F.multi_head_attention_forward else NotImplemented
        )
        self.calls += output is not NotImplemented
        return func(*args, **kwargs) if output is NotImplemented else output


N, HEADS, WIDTH = 3, 2, 4
LAYERS = st.fixed_dictionaries(
    {"batch_first": st.booleans(), "bias": st.booleans(), "add_bias_kv": st.booleans()},
    optional={
        "add_zero_attn": st.booleans(),
        "kdim": st.just(3),
        "vdim": st.just(5),
        "dropout": st.sampled_from([0.3, 0.7]),
    },
)


@st.composite
def attention_calls(draw):
    """A layer, its queries, keys and values, and keyword arguments of a call: every mask and hint."""
    options = draw(LAYERS)
    length, unbatched = draw(st.integers(1, 4)), draw(st.booleans())
    joint = draw(st.booleans()) and not {"kdim", "vdim"} & set(options)  # self-attention: one tensor in three places
    source_length = length if joint else draw(st.integers(1, 4))

    def tokens(size, width, seed):
        shape = (size, width) if unbatched else (N, size, width) if options["batch_first"] else (size, N, width)
        return rows(*shape, seed=seed)

    query = tokens(length, WIDTH, 1)
    key = query if joint else tokens(source_length, options.get("kdim", WIDTH), 2)
    value = query if joint else tokens(source_length, options.get("vdim", WIDTH), 3)
    masks = {}
    shapes = [(length, source_length), ((1 if unbatched else N) * HEADS, length, source_length)]
    kind = draw(st.sampled_from([None, "bool", "float"]))
    hinted = kind is not None and draw(st.booleans())
    if kind is not None:
        causal = torch.ones(length, source_length, dtype=torch.bool).triu(1)
        blocked = causal.expand(draw(st.sampled_from(shapes)))  # a query always attends to the first key
        masks["attn_mask"] = (
            blocked if kind == "bool" else torch.zeros(blocked.shape).double().masked_fill(blocked, -1e30)
        )
        masks["is_causal"] = hinted
    if draw(st.booleans()):
        padding = torch.zeros((source_length,) if unbatched else (N, source_length), dtype=torch.bool)
        if source_length > 1 or draw(st.booleans()):  # of one key: a query that attends to nothing
            padding[..., -1] = True
        as_float = torch.zeros(padding.shape).double().masked_fill(padding, float("-inf"))
        masks["key_padding_mask"] = as_float if kind == "float" or (kind is None and draw(st.booleans())) else padding
    weights = {"need_weights": draw(st.booleans()), "average_attn_weights": draw(st.booleans())}
    layer = with_random_weights(nn.MultiheadAttention(WIDTH, HEADS, **options))
    return layer.train(draw(st.booleans())), (query, key, value), masks | weights


@examples(4)
@given(attention_calls())
def test_decomposition_gives_the_outputs_gradients_and_random_numbers_of_torch(call):
    layer, inputs, options = call
    results = []
    for mode in (nullcontext(), Decompose()):
        torch.manual_seed(0)
        with mode:
            outputs, attention = layer(*inputs, **options)
        weights = torch.linspace(0.5, 1.5, outputs.numel(), dtype=torch.float64).reshape(outputs.shape)
        gradients = torch.autograd.grad((outputs * weights).sum(), list(layer.parameters()), allow_unused=True)
        results.append((outputs, attention, *gradients, torch.get_rng_state()))
    assert mode.calls == 1
    for ours, expected in zip(*results[::-1], strict=True):
        torch.testing.assert_close(ours, expected, equal_nan=True)


@pytest.mark.parametrize("need_weights", [False, True])
def test_no_examples(need_weights):
    layer = with_random_weights(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))
    x = rows(2, 3, WIDTH)[:0]
    with Decompose() as mode:
        outputs, attention = layer(x, x, x, need_weights=need_weights)
    assert mode.calls == 1
    assert outputs.shape == x.shape
    assert attention is None or attention.shape == (0, 3, 3)


def test_calls_that_torch_refuses_are_left_to_torch():
    layer, x = with_random_weights(nn.MultiheadAttention(WIDTH, HEADS)), rows(3, 2, WIDTH)
    for options in ({"is_causal": True}, {"attn_mask": torch.zeros(1, 3)}, {"attn_mask": torch.zeros(3, 3, 3)}):
        with pytest.raises(RuntimeError), Decompose():
            layer(x, x, x, **options)


class Attends(nn.Module):
    """Reads out a sequence after attention: by an attention layer with masks, or by the function without parameters."""

    def __init__(self, attend, *layers):
        super().__init__()
        self.inner, self.layers, self.out, self.attend = nn.Linear(4, 4), nn.ModuleList(layers), nn.Linear(4, 2), attend

    def forward(self, x):
        h = self.inner(x)
        return self.out(torch.tanh(self.attend(self, h)).mean(1))


CAUSAL = torch.ones(3, 3, dtype=torch.bool).triu(1)


def heads(h):
    return h.unflatten(-1, (2, 2)).transpose(1, 2)


def joined(h):
    return h.transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("layers", "attend"),
    [
        (
            lambda: [nn.MultiheadAttention(4, 2, batch_first=True)],
            lambda m, h: m.layers[0](h, h, h, attn_mask=CAUSAL, is_causal=True, need_weights=False)[0],
        ),
        (
            lambda: [nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True)],
            lambda m, h: m.layers[0](h, h, h, key_padding_mask=h[..., 0] > 1.0)[0],
        ),
        (
            lambda: [nn.MultiheadAttention(4, 2, batch_first=True)],
            lambda m, h: m.layers[0](h, h, h, attn_mask=CAUSAL, average_attn_weights=False)[1].flatten(2)[..., :4],
        ),
        (
            lambda: [nn.TransformerEncoderLayer(4, 2, 5, batch_first=True, norm_first=True)],
            lambda m, h: m.layers[0](h, src_mask=CAUSAL, is_causal=True),
        ),
        (
            lambda: [nn.TransformerEncoderLayer(4, 2, 5, batch_first=True, bias=False)],
            lambda m, h: m.layers[0](h, src_key_padding_mask=h[..., 0] > 1.0),
        ),
        (
            lambda: [nn.TransformerDecoderLayer(4, 2, 5, batch_first=True)],
            lambda m, h: m.layers[0](h, h.flip(1), tgt_mask=CAUSAL, tgt_is_causal=True),
        ),
        (lambda: [], lambda m, h: joined(F.scaled_dot_product_attention(*3 * [heads(h)], is_causal=True, scale=0.3))),
        (
            lambda: [],
            lambda m, h: joined(
                F.scaled_dot_product_attention(heads(h), *2 * [heads(h)[:, :1]], attn_mask=~CAUSAL, enable_gqa=True)
            ),
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_of_masked_attention(layers, attend, dtype):
    model = with_random_weights(Attends(attend, *layers())).to(dtype).eval()
    assert_exact(model, rows(4, 3, 4).to(dtype))
