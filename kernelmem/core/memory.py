"""Memory that this process may still allocate: what the machine has, within the limits of its control groups."""

import os
from pathlib import Path

from kernelmem.core.errors import InputError

UNKNOWN = 2**60  # bytes, on systems that do not tell


def available_memory(root: Path = Path("/")) -> int:
    """Return the number of bytes that can be allocated without swapping and without exceeding a limit of this process.

    The smallest of: the memory that Linux reports as available; for each control group around this process (containers,
    batch systems) its limit less what it uses, where cached files count as free; and the limit of the address space.
    Systems that do not tell count as unlimited. ``root`` is the directory with ``proc`` and ``sys``.
    """
    values = [_meminfo(root), *_group_limits(root), _address_space(root)]
    return max(0, min((value for value in values if value is not None), default=UNKNOWN))


def check_available_memory(needed: int, purpose: str, hint: str) -> None:
    """Check that ``needed`` bytes are available.

    Raises:
        InputError: they are not; the message says how many are needed and available.
    """
    available = available_memory()
    if needed > available:
        raise InputError(
            f"{purpose} that needs about {needed / 2**20:,.0f} MiB, where {available / 2**20:,.0f} MiB are available",
            expected="enough free memory, within the limits of the container",
            hint=hint,
        )


def _meminfo(root: Path) -> int | None:
    fields = _fields(root / "proc/meminfo")
    return None if "MemAvailable:" not in fields else fields["MemAvailable:"] * 1024


def _group_limits(root: Path) -> list[int]:
    """Return limit less use of the memory control groups of this process and of all groups around them, versions 1 and 2."""
    limits = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base, names = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            directory = base.joinpath(*parts[:depth])
            limit, used = (_number(directory / name) for name in names)
            if limit is not None and used is not None and limit < UNKNOWN:
                statistics = _fields(directory / "memory.stat")
                cached_files = statistics.get("inactive_file", 0) + statistics.get("active_file", 0)
                limits.append(limit - max(0, used - cached_files))
    return limits


def _address_space(root: Path) -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = next(iter(_lines(root / "proc/self/statm")), "").split()
    if limit == resource.RLIM_INFINITY or not used:
        return None
    return limit - int(used[0]) * os.sysconf("SC_PAGE_SIZE")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _fields(path: Path) -> dict[str, int]:
    """Return the numbers of a file with lines such as "name 123"."""
    pairs = [line.split() for line in _lines(path)]
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) >= 2 and pair[1].isdigit()}


def _number(path: Path) -> int | None:
    text = next(iter(_lines(path)), "").strip()
    return int(text) if text.isdigit() else None
