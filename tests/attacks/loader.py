"""Not a test: loads hostile files in a process whose memory is limited, and prints what happened."""

import json
import resource
import sys
from pathlib import Path

import kernelmem as km
from kernelmem.core import load_weights
from kernelmem.training.datasets import read_npz

ROOM = 100 * 2**20  # bytes more than the process has after its imports


def pages():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def attempts(folder):
    """Yield (name, function, file)."""
    spectrum = type(km.spectrum([[1.0]]))
    loaders = {
        "weights": [load_weights],
        "arrays": [read_npz],
        "results": [spectrum.load],
        "documents": [km.Audit.load, km.TextAudit.load],
        "stores": [km.KernelStore.open],
    }
    for kind, functions in loaders.items():
        for file in sorted((folder / kind).iterdir()):
            for function in functions:
                yield f"{kind}/{file.name}", function, file


def load(function, file):
    try:
        value = function(file)
    except km.KernelmemError as error:
        return "refused", str(error)
    except BaseException as error:
        return type(error).__name__, str(error)
    return "loaded", repr(type(value))


if __name__ == "__main__":
    attempted = list(attempts(Path(sys.argv[1])))  # imports what they need
    before = pages()
    resource.setrlimit(resource.RLIMIT_AS, (before + ROOM, resource.RLIM_INFINITY))
    report = {}
    for name, function, file in attempted:
        outcome, text = load(function, file)
        report[f"{name} {function.__qualname__}"] = {
            "outcome": outcome, "text": text[:200], "length": len(text),
            "names": file.name in text or file.parent.name in text,
        }  # fmt: skip
    print(json.dumps(report))
