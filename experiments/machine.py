"""The machine that a result was measured on, as the result files name it."""

import os
import platform
import re
from importlib import metadata
from pathlib import Path

import torch

__all__ = ["describe"]


def describe() -> dict[str, str | int]:
    """Name processor, cores, threads and versions. No host name, no user, no path."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("kernelmem", "torch", "numpy", "scipy")},
    }


def _cpu_model() -> str:
    """As Linux names it, with family, model and vector width, because virtual machines often hide the trade name."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return platform.processor() or platform.machine()
    text = path.read_text(encoding="utf-8").split("\n\n")[0]
    fields = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text, flags=re.MULTILINE))
    vectors = next((v for v in ("avx512f", "avx2", "avx") if v in fields.get("flags", "").split()), "no avx")
    name = fields.get("model name", platform.processor())
    return f"{name}, family {fields.get('cpu family', '?')} model {fields.get('model', '?')}, {vectors}"
