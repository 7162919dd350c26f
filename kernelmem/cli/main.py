"""Entry point: parse the command line, run the command, turn errors into exit codes."""

import io
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import tyro

from kernelmem.cli.audit import AuditCommand
from kernelmem.cli.compress import CompressCommand
from kernelmem.cli.descent import DescentCommand
from kernelmem.cli.files import LedgerCommand, StoreCommand
from kernelmem.cli.ntk import NtkCommand
from kernelmem.cli.text import TextCommand

DESCRIPTION = """Kernel and memorization analysis of PyTorch networks.

kernelmem --version prints the version."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    >>> main(["audit", "--noise", "2"])
    2
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments == ["--version"]:
        from kernelmem.version import __version__

        print(f"kernelmem {__version__}")
        return 0
    if isinstance(sys.stdout, io.TextIOWrapper):  # not every name of a file can be printed in every encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    command = tyro.extras.subcommand_cli_from_dict(
        {
            "audit": AuditCommand,
            "ntk": NtkCommand,
            "ledger": LedgerCommand,
            "descent": DescentCommand,
            "compress": CompressCommand,
            "store": StoreCommand,
            "text": TextCommand,
        },
        prog="kernelmem",
        description=DESCRIPTION,
        args=arguments,
    )
    try:
        with _interruptible_by_sigterm():
            return _run(command)
    except KeyboardInterrupt as interruption:
        kept = getattr(interruption, "__notes__", ["unfinished files were not written"])
        print(f"\nkernelmem: interrupted; {'; '.join(kept)}", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(interruption, Terminated) else signal.SIGINT)


def _run(
    command: AuditCommand | CompressCommand | NtkCommand | LedgerCommand | DescentCommand | StoreCommand | TextCommand,
) -> int:
    """Run a command, print its error, and return the exit code."""
    from kernelmem.core.errors import KernelmemError, printable  # here: --help needs no torch

    try:
        command.run()
    except KernelmemError as error:
        print(f"kernelmem: {type(error).__name__}", file=sys.stderr)
        for label, text in (("got", error.given), ("expected", error.expected), ("hint", error.hint)):
            print(f"  {label + ':':<10}{text}", file=sys.stderr)
        return 2
    except OSError as error:  # disk full, no permission: the error names the file, a traceback would not help
        print(f"kernelmem: {printable(str(error))}", file=sys.stderr)
        return 1
    return 0


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled as Ctrl-C is: what is finished is kept, and worker processes are stopped."""


@contextmanager
def _interruptible_by_sigterm() -> Iterator[None]:
    """Raise :class:`Terminated` in the context when SIGTERM arrives, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: object) -> None:
        raise Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
