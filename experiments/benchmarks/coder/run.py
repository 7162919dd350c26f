"""Time of the entropy coder: streams of a million symbols of 2, 9 and 100 classes, encoded and decoded."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.machine import describe
from kernelmem.compression.coder import decode_symbols, encode_symbols, frequencies, ideal_bits

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options:
    """Time of the entropy coder, and bits of its streams above the ideal length."""

    symbols: int = 1_000_000
    """Symbols per stream."""
    rounds: int = 3
    """Rounds; the smallest time is reported, and all of them are kept."""
    out: Path = Path("out/benchmarks/coder")
    """Directory for results.json."""


def run(options: Options) -> None:
    """Measure, print and write the results."""
    results = {"machine": describe(), "symbols": options.symbols, "load": round(os.getloadavg()[0], 2), "classes": {}}
    for n_classes in (2, 9, 100):
        rng = np.random.default_rng(n_classes)
        table = frequencies(rng.dirichlet(np.ones(n_classes), size=options.symbols))
        symbols = rng.integers(0, n_classes, options.symbols)
        rounds = [_round(symbols, table) for _ in range(options.rounds)]
        stream = encode_symbols(symbols, table)
        results["classes"][str(n_classes)] = {
            "cpu_seconds": {step: min(times[step] for times in rounds) for step in rounds[0]},
            "rounds": rounds,
            "stream_minus_ideal_bits": round(8 * len(stream) - float(ideal_bits(symbols, table).sum()), 2),
        }
        print(n_classes, "classes:", results["classes"][str(n_classes)]["cpu_seconds"])
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _round(symbols: np.ndarray, table: np.ndarray) -> dict[str, float]:
    started = time.process_time()
    stream = encode_symbols(symbols, table)
    encoded = time.process_time()
    decoded = decode_symbols(stream, table)
    ended = time.process_time()
    assert (decoded == symbols).all()
    return {"encode": round(encoded - started, 3), "decode": round(ended - encoded, 3)}
