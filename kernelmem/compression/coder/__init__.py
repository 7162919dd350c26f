"""Entropy coder: rANS streams of symbols with integer frequencies, and packed fields for headers.

- ``frequencies``: probabilities to integers that sum to a power of two, the same in encoder and decoder;
- ``rans``: streams of bytes from symbols and frequencies, and back;
- ``fields``: unsigned integers of fixed widths in bits.
"""

from kernelmem.compression.coder.fields import pack_fields as pack_fields
from kernelmem.compression.coder.fields import unpack_fields as unpack_fields
from kernelmem.compression.coder.frequencies import PRECISION as PRECISION
from kernelmem.compression.coder.frequencies import best_shift as best_shift
from kernelmem.compression.coder.frequencies import frequencies as frequencies
from kernelmem.compression.coder.frequencies import ideal_bits as ideal_bits
from kernelmem.compression.coder.frequencies import margin as margin
from kernelmem.compression.coder.frequencies import precision as precision
from kernelmem.compression.coder.rans import SymbolDecoder as SymbolDecoder
from kernelmem.compression.coder.rans import decode_symbols as decode_symbols
from kernelmem.compression.coder.rans import encode_symbols as encode_symbols
from kernelmem.compression.coder.rans import stream_bits as stream_bits
