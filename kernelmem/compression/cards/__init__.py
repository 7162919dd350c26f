"""Cards: files with a quantized network and the labels given it, from which the labels come back bit for bit.

- ``making``: the function :func:`card`, which trains and encodes;
- ``result``: its result :class:`Card`, and :func:`open_card`;
- ``container``: the file around the code;
- ``code``: the code in two parts, network and labels given the network;
- ``network``: network that is evaluated in whole numbers, exactly;
- ``training``: training of the whole numbers for a short code;
- ``inputs``: inputs on a grid of whole numbers;
- ``options``: size of the network, and training.
"""

from kernelmem.compression.cards.making import card as card
from kernelmem.compression.cards.options import CardOptions as CardOptions
from kernelmem.compression.cards.result import Card as Card
from kernelmem.compression.cards.result import open_card as open_card
