"""Attention: nn.MultiheadAttention as linear maps and scaled dot products, so that the linear rule covers its weights."""

from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor

from kernelmem.tangents.capture import Decomposition, Function

SIGNATURE = signature(F.multi_head_attention_forward)


class AttentionRule(Decomposition):
    """F.multi_head_attention_forward (Vaswani et al. 2017), without dropout."""

    functions = (F.multi_head_attention_forward,)

    def expand(self, function: Function, args: tuple, kwargs: dict) -> object:
        """Project, attend, project: the outputs of torch's function up to rounding."""
        bound = SIGNATURE.bind(*args, **kwargs)
        bound.apply_defaults()
        a = bound.arguments
        if a["static_k"] is not None or a["static_v"] is not None or (a["training"] and a["dropout_p"] > 0):
            return NotImplemented
        query, key, value = a["query"], a["key"], a["value"]
        batched = query.dim() == 3
        if not batched:
            query, key, value = (t.unsqueeze(1) for t in (query, key, value))
        length, n, width = query.shape
        heads = a["num_heads"]
        q, k, v = self._project(a, query, key, value)
        mask = _merged_mask(a, q, n, heads, k.shape[0])
        if a["bias_k"] is not None:
            k = torch.cat([k, a["bias_k"].expand(1, n, width)])
            v = torch.cat([v, a["bias_v"].expand(1, n, width)])
            mask = None if mask is None else F.pad(mask, (0, 1))
        q, k, v = (t.reshape(t.shape[0], n, heads, width // heads).permute(1, 2, 0, 3) for t in (q, k, v))
        if a["add_zero_attn"]:
            k, v = (torch.cat([t, torch.zeros_like(t[:, :, :1])], 2) for t in (k, v))
            mask = None if mask is None else F.pad(mask, (0, 1))
        scores = torch.matmul(q * (width // heads) ** -0.5, k.transpose(2, 3))
        probabilities = torch.softmax(scores if mask is None else scores + mask, -1)
        mixed = torch.matmul(probabilities, v).permute(2, 0, 1, 3).reshape(length, n, width)
        out = F.linear(mixed, a["out_proj_weight"], a["out_proj_bias"])
        attention = None
        if a["need_weights"]:
            attention = probabilities.mean(1) if a["average_attn_weights"] else probabilities
            attention = attention if batched else attention.squeeze(0)
        return out if batched else out.squeeze(1), attention

    @staticmethod
    def _project(a: dict, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        bias, width = a["in_proj_bias"], query.shape[-1]
        if a["use_separate_proj_weight"]:
            weights = [a["q_proj_weight"], a["k_proj_weight"], a["v_proj_weight"]]
        elif a["query"] is a["key"] and a["key"] is a["value"]:
            return tuple(F.linear(query, a["in_proj_weight"], bias).split(width, -1))
        else:
            weights = a["in_proj_weight"].split(width)
        biases = [None] * 3 if bias is None else bias.split(width)
        return tuple(F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))


def _merged_mask(a: dict, q: Tensor, n: int, heads: int, source: int) -> Tensor | None:
    """Combine attn_mask and key_padding_mask into one additive mask that broadcasts to (n, heads, L, S)."""
    merged = None
    for mask, shape in ((a["attn_mask"], None), (a["key_padding_mask"], (n, 1, 1, source))):
        if mask is None:
            continue
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, float("-inf"))
        if shape is not None:
            mask = mask.reshape(shape)
        elif mask.dim() == 3:
            mask = mask.reshape(n, heads, *mask.shape[1:]) if mask.shape[0] == n * heads else mask
        merged = mask.to(q.dtype) if merged is None else merged + mask
    return merged
