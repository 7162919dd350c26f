"""Checks of a device: equality with the CPU, the recorder, and benchmarks compared with torch.func; one JSON file.

    make device DEVICE=cuda
    PYTHONPATH=. python3 -m experiments.device --device cuda --out out/device/results.json    # without installing anything

Parts run in the order of their importance; the file is written after each row, so that an interrupted run leaves what it has.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from experiments.device import benchmarks, equality, recorder
from experiments.device.settings import Sizes, describe

__all__ = ["PARTS", "main"]

PARTS: dict[str, Callable[..., None]] = {
    "recorder": recorder.checks,
    "equality": equality.differences,
    "kernels": benchmarks.kernels,
    "memory": benchmarks.memory,
    "ensembles": benchmarks.ensembles,
    "ledgers": benchmarks.ledgers,
    "double descent": benchmarks.sweeps,
}


def main(arguments: list[str] | None = None) -> dict[str, object]:
    """Run the parts, and write the file after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("out/device/results.json"))
    parser.add_argument("--parts", nargs="*", choices=tuple(PARTS), default=tuple(PARTS))
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that the script works")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    results: dict[str, object] = {"machine": describe(options.device), "quick": options.quick}
    seconds: dict[str, float] = {}
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def store(part: str, table: object) -> None:
        results[part] = table
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    for part in options.parts:
        start = time.perf_counter()
        try:
            PARTS[part](options.device, Sizes(options.quick), partial(store, part))
        except Exception as error:
            store(part, f"{type(error).__name__}: {error}"[:300])
        seconds[part] = round(time.perf_counter() - start, 1)
        store("seconds", seconds)
        print(f"== {part}: {seconds[part]} s\n{json.dumps(results.get(part), indent=1)}", flush=True)
    return results


if __name__ == "__main__":
    main()
