"""Attention: nn.MultiheadAttention as linear maps and scaled dot products, so that the linear rule covers its weights."""

from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor

from kernelmem.tangents.capture import Decomposition, Function

SIGNATURE = signature(F.multi_head_attention_forward)


class AttentionRule(Decomposition):
    """F.multi_head_attention_forward (Vaswani et al. 2017); dropout draws the same random numbers as torch."""

    functions = (F.multi_head_attention_forward,)

    def expand(self, function: Function, args: tuple, kwargs: dict) -> object:
        """Compute the outputs of F.multi_head_attention_forward, up to rounding, by linear maps and scaled dot products.

        Returns the outputs and the attention weights (None if they are not asked for), or NotImplemented.
        """
        bound = SIGNATURE.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = bound.arguments
        if arguments["static_k"] is not None or arguments["static_v"] is not None:
            return NotImplemented
        query, key, value = arguments["query"], arguments["key"], arguments["value"]
        batched = query.dim() == 3
        if not batched:
            query, key, value = (tensor.unsqueeze(1) for tensor in (query, key, value))
        length, n, width = query.shape
        heads = arguments["num_heads"]
        q, k, v = self._project_inputs(arguments, query, key, value)  # (n, tokens, width)
        # torch takes the hint instead of the mask, unless it needs the mask for something else.
        is_causal = arguments["is_causal"] and arguments["key_padding_mask"] is None and not arguments["need_weights"]
        if not _has_valid_masks(arguments, n * heads, length, k.shape[1]):
            return NotImplemented  # torch raises its error
        mask = None if is_causal else _merged_mask(arguments, q, n, heads, k.shape[1])
        if arguments["bias_k"] is not None:
            k = torch.cat([k, arguments["bias_k"].expand(n, 1, width)], 1)
            v = torch.cat([v, arguments["bias_v"].expand(n, 1, width)], 1)
            mask = None if mask is None else F.pad(mask, (0, 1))
        q, k, v = (tensor.unflatten(2, (heads, -1)).transpose(1, 2) for tensor in (q, k, v))
        if arguments["add_zero_attn"]:
            k, v = (torch.cat([tensor, torch.zeros_like(tensor[:, :, :1])], 2) for tensor in (k, v))
            mask = None if mask is None else F.pad(mask, (0, 1))
        if is_causal:
            mask = torch.ones(length, k.shape[2], dtype=torch.bool, device=q.device).tril()
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))
        scores = torch.matmul(q * (width // heads) ** -0.5, k.transpose(2, 3))
        scores = scores if mask is None else scores + mask
        # Without attention weights torch gives queries that may attend to no key an output of 0, not NaN.
        is_plain = mask is None or arguments["need_weights"]
        softmax = torch.softmax if is_plain else torch._safe_softmax  # pyright: ignore[reportPrivateImportUsage]
        probabilities = softmax(scores, -1)
        if arguments["training"] and arguments["dropout_p"] > 0:
            probabilities = F.dropout(probabilities, arguments["dropout_p"])
        attended = torch.matmul(probabilities, v).transpose(1, 2).reshape(n, length, width)
        output = F.linear(attended, arguments["out_proj_weight"], arguments["out_proj_bias"])
        output = output.transpose(0, 1).contiguous()  # as in torch: dropout draws numbers in the order of memory
        attention = None
        if arguments["need_weights"]:
            attention = probabilities.mean(1) if arguments["average_attn_weights"] else probabilities
            attention = attention if batched else attention.squeeze(0)
        return output if batched else output.squeeze(1), attention

    @staticmethod
    def _project_inputs(arguments: dict, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values (n, tokens, width) after their input projections, whose weights are in ``arguments``.

        The inputs are (tokens, n, width). Examples are put first, as most models have them in memory.
        """
        bias, width = arguments["in_proj_bias"], query.shape[-1]
        if arguments["use_separate_proj_weight"]:
            weights = [arguments["q_proj_weight"], arguments["k_proj_weight"], arguments["v_proj_weight"]]
        elif arguments["query"] is arguments["key"] and arguments["key"] is arguments["value"]:
            return F.linear(query.transpose(0, 1), arguments["in_proj_weight"], bias).split(width, -1)
        else:
            weights = arguments["in_proj_weight"].split(width)
        biases = [None] * 3 if bias is None else bias.split(width)
        return tuple(
            F.linear(tokens.transpose(0, 1), weight, part_bias)
            for tokens, weight, part_bias in zip((query, key, value), weights, biases, strict=True)
        )


def _has_valid_masks(arguments: dict, n_heads: int, length: int, source_length: int) -> bool:
    """Return True if torch accepts attn_mask: (L, S) or (n * heads, L, S), and not absent with the hint is_causal."""
    mask = arguments["attn_mask"]
    if mask is None:
        return not arguments["is_causal"]
    return tuple(mask.shape) in ((length, source_length), (n_heads, length, source_length))


def _merged_mask(arguments: dict, q: Tensor, n: int, heads: int, source_length: int) -> Tensor | None:
    """Combine attn_mask and key_padding_mask into one additive mask that broadcasts to (n, heads, L, S).

    n counts examples, L queries and S keys. Returns None if both masks are None.
    """
    merged = None
    for mask, shape in ((arguments["attn_mask"], None), (arguments["key_padding_mask"], (n, 1, 1, source_length))):
        if mask is None:
            continue
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, float("-inf"))
        if shape is not None:
            mask = mask.reshape(shape)
        elif mask.dim() == 3:
            mask = mask.reshape(n, heads, *mask.shape[1:])
        merged = mask.to(q.dtype) if merged is None else merged + mask
    return merged
