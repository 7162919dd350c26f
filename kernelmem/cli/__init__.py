"""The command line: ``kernelmem audit``, ``kernelmem ntk``, ``kernelmem ledger verify``, ``kernelmem descent``. Exit codes.

0: done, or all that was verified holds; 2: the input was refused, or is not what was written (the message says what to do);
1: a file could not be read or written; 130: interrupted. Other than 0 means that nothing was written.
"""

from kernelmem.cli.main import main as main
