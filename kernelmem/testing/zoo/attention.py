"""Zoo entries: attention and transformer layers."""

import torch
from torch import nn

from kernelmem.testing.cases import Inputs
from kernelmem.testing.modules import Apply, Attention, ClassToken, ProjectedAttention, Residual, Shift
from kernelmem.testing.zoo.layers import Group

SEQUENCE, TOKENS = Inputs((4, 4)), Inputs((4,), vocabulary=6)


def _causal_mask() -> torch.Tensor:
    return torch.ones(4, 4, dtype=torch.bool).triu(1)


def _attention(*, need_weights: bool = False, mask: torch.Tensor | None = None, padding: bool = False, **options):
    """Return an entry that builds nn.MultiheadAttention with these options, followed by a linear readout."""

    def build() -> nn.Module:
        options.setdefault("batch_first", True)
        inner = nn.MultiheadAttention(4, 2, **options)
        attend = Attention(inner, need_weights=need_weights, mask=mask, padding=padding)
        return nn.Sequential(attend, nn.Tanh(), nn.Flatten(), nn.Linear(16, 2))

    return build, SEQUENCE


def _transformer_layer(**options):
    """Return an entry that builds nn.TransformerEncoderLayer with these options, followed by a linear readout."""

    def build() -> nn.Module:
        options.setdefault("batch_first", True)
        layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=5, **options)
        transpose = [] if options["batch_first"] else [Apply(lambda x: x.transpose(0, 1))]
        return nn.Sequential(*transpose, layer, *transpose, Apply(lambda h: h.mean(1)), nn.Linear(4, 2))

    return build, SEQUENCE


def _transformer_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=5, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(4), enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(6, 4), Shift(4, 4), encoder, Apply(lambda h: h.mean(1)), nn.Linear(4, 2))


def _vision_transformer() -> nn.Module:
    patches = nn.Sequential(nn.Conv2d(1, 4, 2, stride=2), Apply(lambda h: h.flatten(2).transpose(1, 2)))
    block = Residual(nn.Sequential(nn.LayerNorm(4), ProjectedAttention(4, 2)))
    return nn.Sequential(patches, ClassToken(4), Shift(5, 4), block, Apply(lambda h: h[:, 0]), nn.Linear(4, 3))


def _projected_attention(**options):
    return lambda: nn.Sequential(ProjectedAttention(4, 2, **options), nn.Flatten(), nn.Linear(16, 2)), SEQUENCE


def attention() -> Group:
    """Return entries of attention as a module, as a function, and in transformer layers in eval mode."""
    decay = -torch.arange(16, dtype=torch.float64).reshape(4, 4) / 8
    return {
        "attention": _attention(),
        "attention, sequence first": _attention(batch_first=False),
        "attention weights used": _attention(need_weights=True),
        "attention without bias": _attention(bias=False),
        "attention, separate key and value widths": _attention(kdim=3, vdim=2),
        "attention, separate widths, sequence first, weights": _attention(
            kdim=3, vdim=2, batch_first=False, need_weights=True),
        "attention, causal mask": _attention(mask=_causal_mask()),
        "attention, real mask": _attention(mask=decay),
        "attention, padding mask": _attention(padding=True),
        "attention, bias of keys and values": _attention(add_bias_kv=True),
        "attention, zero attention, weights": _attention(add_zero_attn=True, need_weights=True),
        "scaled dot-product attention": _projected_attention(),
        "scaled dot-product attention, causal": _projected_attention(causal=True),
        "scaled dot-product attention, mask": _projected_attention(mask=decay),
        "transformer layer": _transformer_layer(),
        "transformer layer, normalized first": _transformer_layer(norm_first=True),
        "transformer layer, gelu, no bias": _transformer_layer(activation="gelu", bias=False),
        "transformer layer, sequence first": _transformer_layer(batch_first=False),
        "transformer encoder on tokens": (_transformer_encoder, TOKENS),
        "vision transformer": (_vision_transformer, Inputs((1, 4, 4))),
        "class token": (
            lambda: nn.Sequential(ClassToken(4), nn.Linear(4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(15, 2)),
            SEQUENCE),
    }  # fmt: skip
