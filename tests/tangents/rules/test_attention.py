"""kernelmem.tangents.rules.attention: outputs of torch up to rounding, transformer layers on the fast path."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk
from kernelmem.testing.cases import with_random_weights
from kernelmem.testing.closeness import assert_close, scale_of
from kernelmem.testing.modules import Apply


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


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 3, "vdim": 5}], ids=str
)
@pytest.mark.parametrize("masked", [False, True])
def test_decomposition_gives_the_outputs_of_torch(options, batch_first, masked):
    from kernelmem.tangents.rules.attention import AttentionRule

    layer = with_random_weights(nn.MultiheadAttention(4, 2, batch_first=batch_first, **options))
    query, key, value = (
        rows(3, 2, 4),
        rows(3, 2, options.get("kdim", 4), seed=2),
        rows(3, 2, options.get("vdim", 4), seed=3),
    )
    length, n = (2, 3) if batch_first else (3, 2)
    masks = {"attn_mask": torch.ones(length, length, dtype=torch.bool).triu(1)} if masked else {}
    if masked:
        masks["key_padding_mask"] = torch.zeros(n, length, dtype=torch.bool)
        masks["key_padding_mask"][0, -1] = True
    calls = []

    class Decompose(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is F.multi_head_attention_forward:
                calls.append(func)
                return AttentionRule().expand(func, args, kwargs or {})
            return func(*args, **(kwargs or {}))

    expected, weights = layer(query, key, value, **masks)
    with Decompose():
        outputs, attention = layer(query, key, value, **masks)
    assert calls
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(attention, weights)


def test_dropout_is_not_decomposed():
    from kernelmem.tangents.rules.attention import AttentionRule

    layer = nn.MultiheadAttention(4, 2, dropout=0.5)
    x = rows(3, 2, 4).float()
    arguments = (
        x,
        x,
        x,
        4,
        2,
        layer.in_proj_weight,
        layer.in_proj_bias,
        None,
        None,
        False,
        0.5,
        layer.out_proj.weight,
        None,
    )
    assert AttentionRule().expand(F.multi_head_attention_forward, arguments, {"training": True}) is NotImplemented
    assert AttentionRule().expand(F.multi_head_attention_forward, arguments, {"training": False}) is not NotImplemented
