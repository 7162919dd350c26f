"""torch.func four ways: as the tutorial has it, its best form, that with the fastest GEMM, and class by class."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.benchmarks.ntk.gauges import available
from experiments.benchmarks.ntk.materials import Problem
from experiments.benchmarks.ntk.peers.gemm import add_gram_torch, fastest_add_gram
from experiments.benchmarks.ntk.peers.interface import Engine, Unsupported, fits
from experiments.benchmarks.ntk.peers.torch_problem import assemble, full_layout

__all__ = ["prepare_classes", "prepare_improved", "prepare_one", "prepare_recipe"]

AddGram = Callable[[Tensor, Tensor], None]  # (K, A): K += A Aᵀ
CHUNKS = {"W2": 128, "W3": 8, "W4": 128}  # examples whose Jacobian is in work at once: the fastest of 8, 16, ... 128


def _functional(problem: Problem):
    """Network as a function of its parameters and one example."""
    model, x = assemble(problem)
    if any(isinstance(module, torch.nn.RNNBase) for module in model.modules()):
        raise Unsupported("vmap has no rule for nn.LSTM")
    torch.backends.mha.set_fastpath_enabled(False)  # has no derivative
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def output(values: dict[str, Tensor], example: Tensor) -> Tensor:
        return functional_call(model, (values, buffers), (example[None],))[0]

    return output, parameters, x


def prepare_recipe(problem: Problem) -> Engine:
    """Both Jacobians, then one einsum a parameter."""
    fits(3 * problem.jacobian_bytes, available())
    output, parameters, x = _functional(problem)
    rule = "nap,map->nm" if problem.outputs == "trace" else "nap,mbp->nmab"

    def kernel(rows: Tensor):
        with sdpa_kernel(SDPBackend.MATH):
            left, right = (vmap(jacrev(output), (None, 0))(parameters, rows) for _ in range(2))
        terms = [torch.einsum(rule, left[name].flatten(2), right[name].flatten(2)) for name in parameters]
        return torch.stack(terms).sum(0).numpy()

    return Engine(kernel, x)


def prepare_one(problem: Problem) -> Engine:
    """One Jacobian for both sides, filled in chunks, one flat GEMM a parameter."""
    return _one_jacobian(problem, lambda shape: add_gram_torch)


def prepare_improved(problem: Problem) -> Engine:
    """The same, with the fastest GEMM of this machine, chosen by a trial."""
    return _one_jacobian(problem, fastest_add_gram)


def _one_jacobian(problem: Problem, choose: Callable[[tuple[int, int]], AddGram]) -> Engine:
    fits(int(1.3 * problem.jacobian_bytes), available())
    output, parameters, x = _functional(problem)
    chunk = CHUNKS.get(problem.workload, 32)
    trace = problem.outputs == "trace"
    order = problem.n if trace else problem.n * problem.n_outputs
    add_gram = choose((order, max(p.numel() for p in parameters.values()) * (problem.n_outputs if trace else 1)))
    jacobians = {
        name: torch.empty(problem.n, problem.n_outputs, p.numel()) for name, p in parameters.items()
    }  # reused, since fresh pages are dear

    def kernel(rows: Tensor):
        n = len(rows)
        with sdpa_kernel(SDPBackend.MATH):
            for start, stop in pairwise([*range(0, n, chunk), n]):
                part = vmap(jacrev(output), (None, 0))(parameters, rows[start:stop])
                for name, jacobian in jacobians.items():
                    jacobian[start:stop] = part[name].flatten(2)
        gram = torch.zeros((n, n) if trace else (n * problem.n_outputs,) * 2)
        for jacobian in jacobians.values():
            add_gram(gram, jacobian[:n].flatten(1) if trace else jacobian[:n].flatten(0, 1))
        return (gram if trace else full_layout(gram, n)).numpy()

    return Engine(kernel, x)


def prepare_classes(problem: Problem) -> Engine:
    """The gradient of one output at a time: C times less memory, trace only."""
    if problem.outputs != "trace":
        raise Unsupported("one output at a time gives K^{cc} only")
    fits(2 * problem.jacobian_bytes // problem.n_outputs, available())
    output, parameters, x = _functional(problem)
    gradients = [vmap(grad(lambda p, e, c=c: output(p, e)[c]), (None, 0)) for c in range(problem.n_outputs)]

    def kernel(rows: Tensor):
        gram = torch.zeros(len(rows), len(rows))
        with sdpa_kernel(SDPBackend.MATH):
            for gradient in gradients:
                for part in gradient(parameters, rows).values():
                    add_gram_torch(gram, part.flatten(1))
        return gram.numpy()

    return Engine(kernel, x)
