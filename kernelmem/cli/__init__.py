"""Command line: ``kernelmem audit``, ``ntk``, ``ledger verify``, ``store``, ``descent``, ``compress``, ``text audit``.

Exit codes: 0, success, or all checks pass; 1, a file could not be read or written; 2, the input was refused or a check failed,
and the message says what to do; 130 and 143, interrupted by Ctrl-C or SIGTERM. Every file is written whole or not at all.

- ``main``: entry point, turns errors into exit codes
- ``audit``, ``ntk``, ``descent``, ``compress``, ``text``: one command each
- ``files``: the commands ``ledger`` and ``store``, which read files of kernelmem
- ``options``: options that several commands share
- ``worker_pool``: processes that train networks and end with their command
- ``model_factory``: models named as ``package.module:factory``
"""

from kernelmem.cli.main import main as main
