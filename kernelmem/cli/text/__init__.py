"""``kernelmem text audit``: its options, and what they name.

- ``command``: the command
- ``inputs``: documents from files, language models and tokenizers from factories, the built-in demonstration; it imports torch,
  which ``--help`` does not need
- ``text_files``: documents of a text file or of JSON lines
"""

from kernelmem.cli.text.command import TextCommand as TextCommand
