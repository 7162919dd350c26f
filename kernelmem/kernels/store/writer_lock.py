"""Lock of a file that one process writes; it ends with the process, however that ends."""

import fcntl
import os
import threading
import weakref
from pathlib import Path

from kernelmem.core.errors import InputError

_held: set[tuple[int, Path]] = set()  # (process, path): a lock of the system does not exclude its own process
_guard = threading.Lock()


class WriterLock:
    """Exclusive right to write a file, held in ``<file>.lock``, which contains the number of the process.

    The operating system releases the lock when the process ends, so that a killed process locks nothing. Processes that are
    forked do not inherit it. File systems without locks give none: there two writers are not kept apart.
    """

    def __init__(self, file: Path) -> None:
        """Lock the file.

        Raises:
            InputError: another process, or another object of this process, holds the lock.
            OSError: the lock file cannot be created.
        """
        path = file.resolve().with_name(f"{file.name}.lock")
        key = (os.getpid(), path)
        with _guard:
            if key in _held:  # opening and closing the file here would release the lock
                raise _refusal(file, str(os.getpid()))
            descriptor = _lock(path, file)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            _held.add(key)
        self._finalizer = weakref.finalize(self, _release, descriptor, key)

    def release(self) -> None:
        """Release the lock and remove its file."""
        self._finalizer()


def _lock(path: Path, file: Path) -> int:
    """Return the descriptor of the locked file ``path``.

    Raises:
        InputError: another process holds the lock of ``file``.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise _refusal(file, holder if holder.isdigit() else "unknown") from None
        except OSError:  # a file system without locks
            return descriptor
        if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
            return descriptor
        os.close(descriptor)  # the previous holder has removed the file in the meantime


def _release(descriptor: int, key: tuple[int, Path]) -> None:
    if os.getpid() == key[0]:  # a forked process holds no lock
        key[1].unlink(missing_ok=True)
        _held.discard(key)
    os.close(descriptor)


def _refusal(file: Path, holder: str) -> InputError:
    return InputError(
        f"{file}, which process {holder} is writing",
        expected="one writer at a time",
        hint=f"wait until process {holder} has ended, or read the file: KernelStore.open(path)",
    )
