"""Rules: how each kind of operation uses its parameters, and their tangents.

- ``linear``: linear maps
- ``products``: matrix products, einsum and bilinear forms as linear maps
- ``layout``: views of parameters
- ``convolution``: convolutions and transposed convolutions in one to three dimensions
- ``normalization``: gains and biases of normalization layers
- ``embedding``: lookups in tables, bags of embeddings
- ``elementwise``: parameters that are added, multiplied or expanded, other functions of broadcast arguments; PReLU
- ``attention``: multi-head attention, decomposed into linear maps
- ``recurrent``: RNN, LSTM and GRU, unrolled into linear maps

A new operation needs one file with a :class:`~kernelmem.tangents.capture.Rule` and an entry in ``RULES``.
"""

from kernelmem.tangents.rules.attention import AttentionRule
from kernelmem.tangents.rules.convolution import ConvolutionRule, TransposedConvolutionRule
from kernelmem.tangents.rules.elementwise import ElementwiseRule, PReLURule
from kernelmem.tangents.rules.embedding import EmbeddingBagRule, EmbeddingRule, IndexRule
from kernelmem.tangents.rules.linear import LinearRule
from kernelmem.tangents.rules.normalization import NormalizationRule
from kernelmem.tangents.rules.products import GroupedProductRule
from kernelmem.tangents.rules.recurrent import RecurrentRule

__all__ = ["RULES"]

RULES = (
    LinearRule(),
    GroupedProductRule(),
    ConvolutionRule(),
    TransposedConvolutionRule(),
    NormalizationRule(),
    EmbeddingRule(),
    EmbeddingBagRule(),
    IndexRule(),
    ElementwiseRule(),
    PReLURule(),
    AttentionRule(),
    RecurrentRule(),
)
