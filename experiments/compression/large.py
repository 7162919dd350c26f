"""Up to 5,000 rows: time and memory of the online code and of the account, each in a fresh process."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np

import kernelmem as km
from experiments.benchmarks.ntk.gauges import peak, reset_peak, resident
from experiments.compression.networks import train_networks
from experiments.compression.other_data import GaussianClasses
from kernelmem.core import seed_sequence
from kernelmem.training import labeled_data

__all__ = ["Large", "large", "measure"]

What = Literal["online_code", "account"]
CLASSES = GaussianClasses(6.0, n_classes=10, dimension=20)


@dataclass(frozen=True)
class Large:
    """Ten Gaussian classes with 20 % symmetric flips."""

    sizes: tuple[int, ...] = (1000, 2000, 5000)
    noise: float = 0.2
    width: tuple[int, ...] = (128, 128)
    steps: int = 300


def large(setting: Large, seed: int) -> list[dict]:
    """Return one record per number of rows and function."""
    code = (
        "import json, sys; from experiments.compression.large import Large, measure;"
        "n, seed, what = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]; print(json.dumps(measure(Large(), n, seed, what)))"
    )
    records = []
    for n in setting.sizes:
        for what in ("online_code", "account"):
            command = [sys.executable, "-c", code, str(n), str(seed), what]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            records.append(json.loads(output.splitlines()[-1]))
    return records


def measure(setting: Large, n: int, seed: int, what: What) -> dict:
    """Draw n rows, and return bits, processor time and growth of the peak memory of one function.

    The account is that of a network, which is trained before the clock starts; its kernel is part of the account, while
    the online code is given a kernel.
    """
    seeds = seed_sequence(seed, ["rows", "flips", "weights"])
    x, y, posterior = CLASSES.draw(n, np.random.default_rng(seeds["rows"]))
    labels = km.corrupt_labels(y, setting.noise, seed=seeds["flips"])
    posterior = posterior @ labels.matrix
    record: dict[str, object] = {
        "n": n,
        "function": what,
        "seed": seed,
        "uniform": n * float(np.log2(CLASSES.n_classes)),
        "bayes_bits": -float(posterior.gather(1, labels.y[:, None]).log2().sum()),
    }
    if what == "online_code":
        kernel = km.infinite_ntk(x, depth=2)
        reset_peak()
        start, memory = time.process_time(), resident()
        code = km.online_code(kernel, labels.y, progress=False)
        record |= {"bits": float(code.bits)}
    else:
        data = labeled_data(x.float(), labels.y, x[:2].float(), labels.y[:2])
        networks = train_networks(data, [labels.y], [setting.width], steps=setting.steps, seed=seeds["weights"])
        reset_peak()
        start, memory = time.process_time(), resident()
        account = km.account(
            networks.models[0], (data.x_train, labels.y), reference="infinite_ntk", seed=seed, progress=False
        )
        record |= {
            "online": account.online,
            "left_out": account.left_out,
            "memorized": account.memorized,
            "noise_rate": account.noise_rate,
            "noise_rate_error": account.noise_rate_error,
            "noise": account.noise,
        }
    return record | {"seconds": time.process_time() - start, "memory_mb": (peak() - memory) / 1e6}
