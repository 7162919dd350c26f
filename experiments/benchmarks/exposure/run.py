"""Time of exact and sampled exposure of canaries among a million secrets: from states of the model, and without."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from experiments.machine import describe
from kernelmem import text

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options:
    """Time of exposure of the canaries of the built-in demonstration, an LSTM of 239,000 parameters."""

    canaries: int = 80
    """Pairs of canaries."""
    documents: int = 800
    """Documents that the model is trained on."""
    epochs: int = 12
    """Epochs of training."""
    hidden: int = 200
    """Width of the LSTM."""
    samples: int = 255
    """References per canary."""
    max_nodes: int = 20_000
    """Largest number of prefixes to evaluate per canary."""
    rounds: int = 3
    """Rounds with states; the smallest time is reported, and all of them are kept. Without states: one."""
    out: Path = Path("out/benchmarks/exposure")
    """Directory for results.json."""


def run(options: Options) -> None:
    """Train, measure, compare, print and write the results."""
    torch.set_num_threads(1)
    started = time.process_time()
    trained = text.demonstration(
        n_canaries=options.canaries,
        n_documents=options.documents,
        epochs=options.epochs,
        hidden=options.hidden,
        reference=False,
        progress=False,
    )
    training = time.process_time() - started
    context, n = [*trained.contexts[0].tolist()], 2 * options.canaries
    with_states = text.causal_lm(trained.model, bos=trained.bos)
    without = text.causal_lm(
        trained.model, forward=lambda model, ids: model(ids), bos=trained.bos
    )  # reads prefixes again

    def measure(lm: text.CausalLM, method: str) -> Callable[[], text.SecretExposure]:
        return lambda: text.exposure(
            lm,
            trained.canaries,
            method=method,
            samples=options.samples,
            max_nodes=options.max_nodes,
            context=context,
            progress=False,
        )

    results: dict[str, object] = {
        "machine": describe(),
        "load": round(os.getloadavg()[0], 2),
        "candidates": trained.canaries.n_candidates,
        "canaries": n,
        "training_cpu_seconds": round(training, 1),
    }
    exposures: dict[str, text.SecretExposure] = {}
    for method in ("sampled", "auto"):
        rounds = [_timed(measure(with_states, method)) for _ in range(options.rounds)]
        again = _timed(measure(without, method))
        exposures[method] = rounds[0][1]
        results[method] = {
            "cpu_seconds": min(seconds for seconds, _ in rounds),
            "rounds": [seconds for seconds, _ in rounds],
            "cpu_seconds_without_states": again[0],
            "equal_ranks": torch.equal(rounds[0][1].rank, again[1].rank),
            "largest_difference_of_bits": float((rounds[0][1].bits - again[1].bits).abs().max()),
        }
        print(method, results[method])
    results["exact"] = _summary(exposures["auto"], exposures["sampled"])
    print(results["exact"], exposures["auto"], sep="\n")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _timed(call: Callable[[], text.SecretExposure]) -> tuple[float, text.SecretExposure]:
    started = time.process_time()
    result = call()
    return round(time.process_time() - started, 2), result


def _summary(exact: text.SecretExposure, sampled: text.SecretExposure) -> dict[str, object]:
    """Return numbers of exact ranks and nodes, and what samples alone would have said of the canaries with exact ranks."""
    copies: Tensor = exact.copies
    chosen = exact.exact & (copies > 0)
    bound = 1 + 5 * torch.exp2(exact.bits[exact.exact])
    return {
        "inserted_with_exact_rank": int(chosen.sum()),
        "inserted": int((copies > 0).sum()),
        "nodes": int(exact.nodes.sum()),
        "largest_share_of_the_bound_of_nodes": float((exact.nodes[exact.exact] / bound).max()) if len(bound) else 0.0,
        "mean_exposure_of_inserted": float(exact.exposure[copies > 0].mean()),
        "mean_sampled_exposure_of_inserted": float(sampled.exposure[copies > 0].mean()),
    }
