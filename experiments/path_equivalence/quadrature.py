"""Order in the learning rate of the residual of f_T − f_0 = Σ_t ∫ J(w_t + s d_t) d_t ds for fixed rules."""

import copy
import math
import time
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

import kernelmem as km
from experiments.path_equivalence.configs import ACTIVATIONS, EXACT_ROWS, RULES, STEPS, TIME, Options
from experiments.path_equivalence.training import Problem, problem, recorded, trained
from kernelmem.tangents import load_dual_rules
from kernelmem.trajectory import gauss_legendre

__all__ = ["NOISE", "measure", "order_of", "slopes_at"]

NOISE = 2e-14  # residuals below are rounding, from which no order is estimated


def measure(options: Options) -> list[dict]:
    """One line for each activation, rule, number of steps and seed: max over rows and outputs of |residual|."""
    lines = []
    for activation, kind in ACTIVATIONS.items():
        for seed in range(options.seeds):
            own = problem(seed, kind)
            for steps in STEPS:
                states = trained(own, TIME / steps, steps)
                found = residuals(own, states)
                if activation == "relu" and seed < options.exact_seeds:
                    found["event split"] = exact(own, steps)
                common = {"activation": activation, "seed": seed, "steps": steps}
                lines += [common | {"rule": rule, "residual": value} for rule, value in found.items()]
        print(f"quadrature {activation}: done", flush=True)
    return lines


def residuals(own: Problem, states: dict[str, Tensor]) -> dict[str, float]:
    """Compute the residual of every rule; ``change`` is the largest change of an output, for comparison."""

    def summed(place: float) -> Tensor:
        return slopes_at(own.network, states, own.x_test, place)

    with torch.no_grad():
        first, last = (
            functional_call(own.network, {name: value[t] for name, value in states.items()}, (own.x_test,))
            for t in (0, -1)
        )
    left, right = summed(0.0), summed(1.0)
    found = {"left": left, "trapezoid": 0.5 * (left + right), "midpoint": summed(0.5)}
    for n in range(1, 6):
        rule = gauss_legendre(n)
        found[f"GL{n}"] = sum(w * summed(s) for s, w in zip(rule.nodes, rule.weights, strict=True))
    change = last - first
    return {"change": float(change.abs().max())} | {
        name: float((change - value).abs().max()) for name, value in found.items()
    }


def slopes_at(model: nn.Module, states: dict[str, Tensor], x: Tensor, place: float) -> Tensor:
    """Σ_t of the derivative of f(x) along step t, at one place in every step: (n, C)."""
    step = {name: value[1:] - value[:-1] for name, value in states.items()}
    weights = {name: value[:-1] + place * step[name] for name, value in states.items()}

    def slope(weights: dict[str, Tensor], direction: dict[str, Tensor]) -> Tensor:
        return jvp(lambda w: functional_call(model, w, (x,)), (weights,), (direction,))[1]

    load_dual_rules()
    with torch.no_grad():
        return vmap(slope)(weights, step).sum(0)


def exact(own: Problem, steps: int) -> float:
    """The residual of km.ledger, which splits every step where a unit has its kink."""
    began = time.perf_counter()
    network = copy.deepcopy(own.network)  # the others start from the same weights
    with recorded(own, network, TIME / steps, steps) as run:
        found = km.ledger(run, network, own.x_test[:EXACT_ROWS]).largest_residual
    print(f"ledger of {steps} steps: residual {found:.1e}, {time.perf_counter() - began:.1f} s", flush=True)
    return found


def order_of(lines: list[dict], activation: str, rule: str) -> dict[str, float] | None:
    """log2 of the ratio of residuals over the last halving of the learning rate that rounding does not hide, over seeds."""
    slopes = []
    for seed in sorted({line["seed"] for line in lines}):
        found = {
            line["steps"]: line["residual"]
            for line in lines
            if (line["activation"], line["rule"], line["seed"]) == (activation, rule, seed) and line["residual"] > NOISE
        }
        pairs = [(coarse, fine) for coarse, fine in pairwise(STEPS) if coarse in found and fine in found]
        if not pairs:
            return None
        coarse, fine = pairs[-1]
        slopes.append(math.log2(found[coarse] / found[fine]) / math.log2(fine / coarse))
    se = float(np.std(slopes, ddof=1)) / math.sqrt(len(slopes)) if len(slopes) > 1 else math.nan
    return {"mean": round(float(np.mean(slopes)), 3), "se": round(se, 3), "expected": RULES[rule]}
