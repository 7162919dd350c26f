"""50 million parameters: one product with the operator, and a sketch, in a fresh process; adds them to results.json.

python -m experiments.benchmarks.ntk.large
"""

import json
import time
from pathlib import Path

import torch

import kernelmem as km
from experiments.benchmarks.ntk import gauges
from experiments.benchmarks.ntk.workloads import build
from kernelmem.core import write_file

__all__ = ["main"]

NETWORK, ROWS, DIM = "mlp:784-6700-6700-10", 256, 256


def main() -> dict:
    """Measure, print, and keep."""
    model, x = build(NETWORK, ROWS)
    found: dict = {"network": NETWORK, "parameters": sum(p.numel() for p in model.parameters()), "rows": ROWS}
    resident = gauges.resident()

    def measured(name: str, run) -> torch.Tensor:
        gauges.reset_peak()
        started = time.perf_counter()
        value = run()
        found[name] = {"seconds": time.perf_counter() - started, "peak_bytes": gauges.peak() - resident}
        return value

    kernel = measured("ntk, pseudo", lambda: km.ntk(model, x, outputs="pseudo", verify=False))
    v = torch.randn(ROWS, generator=torch.Generator().manual_seed(0))
    operator = measured("operator made", lambda: km.ntk_operator(model, x, outputs="pseudo"))
    product = measured("operator @ v", lambda: operator @ v)
    features = measured(f"sketch of {DIM}", lambda: km.tangent_features(model, x, DIM, seed=0))
    found["product_error"] = float((product - kernel @ v).norm() / (kernel @ v).norm())
    scale = kernel.diagonal().sqrt()
    found["sketch_error_rms"] = float(
        ((features @ features.T - kernel) / (scale[:, None] * scale)).square().mean().sqrt()
    )
    found["sketch_error_bound"] = 3 * DIM**-0.5
    print(json.dumps(found, indent=1))
    path = Path(__file__).parent / "results.json"
    results = json.loads(path.read_text())
    write_file(path, json.dumps(results | {"large": found}, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
