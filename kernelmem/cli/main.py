"""Entry point: read the command, run it, turn refusals into exit code 2."""

import sys
from collections.abc import Sequence

import tyro

from kernelmem.cli.audit import AuditCommand
from kernelmem.cli.descent import DescentCommand
from kernelmem.cli.ledger import LedgerCommand
from kernelmem.cli.ntk import NtkCommand
from kernelmem.core.errors import KernelmemError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the return value is the exit code.

    >>> main(["audit", "--noise", "2"])
    2
    """
    command = tyro.extras.subcommand_cli_from_dict(
        {"audit": AuditCommand, "ntk": NtkCommand, "ledger": LedgerCommand, "descent": DescentCommand},
        prog="kernelmem",
        description="Kernel and memorization analysis for PyTorch networks.",
        args=arguments,
    )
    try:
        command.run()
    except KernelmemError as error:
        print(f"kernelmem: {type(error).__name__}", file=sys.stderr)
        for label, text in (("got", error.given), ("expected", error.expected), ("hint", error.hint)):
            print(f"  {label + ':':<10}{text}", file=sys.stderr)
        return 2
    except OSError as error:  # disk full, no permission: the file is named, a traceback would not help
        print(f"kernelmem: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nkernelmem: interrupted, unfinished files were not written", file=sys.stderr)
        return 130
    return 0
