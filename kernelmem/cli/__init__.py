"""The command line: ``kernelmem audit`` and ``kernelmem ntk``. Exit codes.

0: done; 2: the input was refused (the message says what to do); 1: a file could not be read or written;
130: interrupted. Other than 0 means that nothing was written.
"""

from kernelmem.cli.main import main as main
