"""Account of the labels in bits.

- ``account``: :func:`account`;
- ``result``: its result;
- ``calibration``: bits of calibrated left-out predictions, and the noise rate;
- ``network_bits``: bits of the labels given the network;
- ``references``: predictions without the network;
- ``nulls``: the same account of networks that cannot have memorized these labels;
- ``network``, ``reinitialize``: the network with its outputs, and a re-initialized copy of it.
"""

from kernelmem.compression.accounting.account import account as account
from kernelmem.compression.accounting.result import Account as Account
