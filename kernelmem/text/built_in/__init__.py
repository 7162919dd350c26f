"""Documents, canaries and network of the built-in audit.

- ``corpus``: blocks of the help topics of Python, one token per character.
- ``lstm``: language model of characters.
- ``demonstration``: ``demonstration`` and its result.
"""

from kernelmem.text.built_in.corpus import decode_characters as decode_characters
from kernelmem.text.built_in.corpus import encode_characters as encode_characters
from kernelmem.text.built_in.corpus import topic_blocks as topic_blocks
from kernelmem.text.built_in.demonstration import Demonstration as Demonstration
from kernelmem.text.built_in.demonstration import demonstration as demonstration
from kernelmem.text.built_in.lstm import CharacterLSTM as CharacterLSTM
