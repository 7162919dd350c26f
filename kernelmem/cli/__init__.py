"""The command line: ``kernelmem audit``. Exit code 0: done; 2: the input was refused (the message says what to do)."""

from kernelmem.cli.main import main as main
