"""The engines: each takes a problem and returns a function from a number of examples to their Gram matrix.

Peers are imported inside, since each is installed beside the environment and measured in a process without the others.
"""

import copy
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.benchmarks.loss_gradients.problems import Problem
from experiments.benchmarks.ntk.gauges import available
from experiments.benchmarks.ntk.peers.gemm import add_gram_torch
from experiments.benchmarks.ntk.peers.interface import Unsupported, fits

__all__ = ["Gram", "bergson", "dattri", "dattri_llm", "ours", "ours_unverified", "torch_func"]

Gram = Callable[[int], np.ndarray]  # of the first examples, computed anew at every call
CHUNK = 32  # sequences or pictures whose gradients are formed at once
CHUNK_ROWS = 256  # the same for rows of numbers


def ours(problem: Problem, *, verify: bool = True) -> Gram:
    """km.ntk of a copy of the model, so that the verification, which is done once a model, is part of every call."""
    import kernelmem as km
    from kernelmem.core import UnsupportedModelError

    names = list(problem.parameters)

    def forward(model: nn.Module, tokens: Tensor) -> Tensor:
        return problem.losses(model(tokens), tokens)[:, None]

    def gram(n: int) -> np.ndarray:
        model = copy.deepcopy(problem.model) if verify else problem.model
        x, y = problem.x[:n], problem.y[:n]
        try:
            if problem.language:
                return km.ntk(model, x, forward=forward, parameters=names, verify=verify).numpy()
            return km.ntk(model, x, target="loss", labels=y, parameters=names, verify=verify).numpy()
        except UnsupportedModelError as error:
            raise Unsupported(str(error)) from error

    return gram


def ours_unverified(problem: Problem) -> Gram:
    """The same without verification, and without the copy."""
    return ours(problem, verify=False)


def _loss_of_one(problem: Problem) -> Callable[..., Tensor]:
    """Loss of one example as a function of parameters, example and label."""
    torch.backends.mha.set_fastpath_enabled(False)  # has no derivative

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return problem.losses(functional_call(problem.model, values, (x[None],)), y[None])[0]

    return loss


def torch_func(problem: Problem) -> Gram:
    """Per-example gradients by vmap and grad into matrices that are reused, one flat GEMM a parameter."""
    fits(int(1.3 * 4 * len(problem.x) * problem.size), available())
    parameters, gradients = problem.parameters, vmap(grad(_loss_of_one(problem)), (None, 0, 0))
    matrices = {name: torch.empty(len(problem.x), p.numel()) for name, p in parameters.items()}
    chunk = CHUNK_ROWS if problem.numbers else CHUNK

    def gram(n: int) -> np.ndarray:
        with sdpa_kernel(SDPBackend.MATH):
            for start, stop in pairwise([*range(0, n, chunk), n]):
                part = gradients(parameters, problem.x[start:stop], problem.y[start:stop])
                for name, matrix in matrices.items():
                    matrix[start:stop] = part[name].flatten(1)
        total = torch.zeros(n, n)
        for matrix in matrices.values():
            add_gram_torch(total, matrix[:n])
        return total.numpy()

    return gram


def dattri(problem: Problem) -> Gram:
    """TracIn of one checkpoint, the same examples as training and test set, without the random projection it has by default."""
    from dattri.algorithm.tracin import TracInAttributor  # type: ignore[import-not-found]
    from dattri.task import AttributionTask  # type: ignore[import-not-found]
    from torch.utils.data import DataLoader, TensorDataset

    one = _loss_of_one(problem)

    def loss(values: dict[str, Tensor], example: tuple[Tensor, Tensor]) -> Tensor:
        return one(values, *example)

    task = AttributionTask(loss, problem.model, problem.model.state_dict())
    attributor = TracInAttributor(task, weight_list=torch.ones(1), normalized_grad=False)
    attributor.projector_kwargs = None  # the constructor replaces None by a projection to 512 dimensions
    batch = len(problem.x)
    while 7 * 4 * batch * problem.size > 0.6 * available():  # it holds six matrices of gradients and more
        batch = -(-batch // 2)

    def gram(n: int) -> np.ndarray:
        loader = DataLoader(TensorDataset(problem.x[:n], problem.y[:n]), batch_size=min(n, batch))
        with sdpa_kernel(SDPBackend.MATH):
            return attributor.attribute(loader, loader).numpy()

    return gram


def _layers(problem: Problem) -> dict[str, nn.Module]:
    """Modules that own the parameters; libraries with hooks take or leave a module as a whole."""
    names = dict.fromkeys(name.rpartition(".")[0] for name in problem.parameters)
    return {name: problem.model.get_submodule(name) for name in names}


def _refuse(problem: Problem, kinds: tuple[type[nn.Module], ...], whose: str) -> None:
    """Name the parameters that hooks on these kinds of layers do not reach."""
    held = {f"{name}.{key}".lstrip("."): layer for name, layer in _layers(problem).items() for key in layer._parameters}
    functional = nn.modules.linear.NonDynamicallyQuantizableLinear  # attention uses its weights, never calls it
    out = [n for n in problem.parameters if not isinstance(held[n], kinds) or isinstance(held[n], functional)]
    if out:
        layers = dict.fromkeys(type(held[name]).__name__ for name in out)
        raise Unsupported(f"{whose} has no per-example gradients of {len(out)} parameters, of {', '.join(layers)}")


def dattri_llm(problem: Problem) -> Gram:
    """One capture of factorized gradients, then the cross-Gram of its attributors on them, routed automatically."""
    from dattri_llm.gradient import HookManager, HookManagerConfig, ops  # type: ignore[import-not-found]
    from transformers.pytorch_utils import Conv1D

    _refuse(problem, (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.Embedding, Conv1D), "dattri-llm")
    kinds = {n: "invasive_linear_io" if type(m) is nn.Linear else "linear_io" for n, m in _layers(problem).items()}
    if problem.language and "gpt.transformer.wte" in kinds:
        kinds["gpt.lm_head"] = "linear_io"  # shares the weights of the embedding
    manager = HookManager(problem.model, HookManagerConfig(hook_types=kinds))

    def gram(n: int) -> np.ndarray:
        with manager.collect():
            problem.losses(problem.model(problem.x[:n]), problem.y[:n]).sum().backward()
            captured = manager.get_gradient()
        problem.model.zero_grad()
        with torch.no_grad():
            return ops.layerwise_cross_dot(captured, captured, mode="auto").numpy()

    return gram


def bergson(problem: Problem) -> Gram:
    """Gradients of all modules side by side in memory, collected in batches, then one GEMM."""
    from bergson.collector.in_memory_collector import InMemoryCollector  # type: ignore[import-not-found]
    from bergson.config.config import IndexConfig  # type: ignore[import-not-found]
    from bergson.gradients import GradientProcessor, LayerAdapter  # type: ignore[import-not-found]
    from datasets import Dataset  # type: ignore[import-not-found]

    _refuse(problem, LayerAdapter.supported_modules, "bergson")
    fits(int(2.3 * 4 * len(problem.x) * problem.size), available())
    problem.model.device = torch.device("cpu")  # type: ignore[assignment]  # as models of transformers have
    chunk = CHUNK_ROWS if problem.numbers else CHUNK
    processor = GradientProcessor(include_bias=True)

    def gram(n: int) -> np.ndarray:
        collector = InMemoryCollector(
            model=problem.model,
            target_modules=set(_layers(problem)),
            processor=processor,
            data=Dataset.from_dict({"row": list(range(n))}),
            cfg=IndexConfig(run_path="unused", include_bias=True),
        )
        try:
            for start, stop in pairwise([*range(0, n, chunk), n]):
                with collector.with_batch(None):
                    x = problem.x[start:stop]
                    outputs = problem.model(x[:, None])[:, 0] if problem.numbers else problem.model(x)  # S = 1
                    losses = problem.losses(outputs, problem.y[start:stop])
                    losses.sum().backward()
                problem.model.zero_grad()
                collector.process_batch(list(range(start, stop)), losses=losses)
        except AssertionError as error:
            raise Unsupported(f"bergson: {error}") from error
        collector.teardown()
        gradients = torch.from_numpy(collector.builder.grad_buffer)
        return (gradients @ gradients.T).numpy()

    return gram
