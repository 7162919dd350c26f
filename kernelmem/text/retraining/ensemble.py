"""Many language models of one recipe, each trained on its own documents: in one batch by vmap, or one after the other."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernelmem.core import InputError, NumericalError, UnsupportedModelError
from kernelmem.core.checks import check_callable, check_instance, seed_sequence
from kernelmem.core.models import saved_storages
from kernelmem.core.models.random_states import random_states
from kernelmem.core.models.torch_func import functional_call, standard_modes, vmap
from kernelmem.text.documents import Documents, check_vocabulary
from kernelmem.text.language_models import causal_lm
from kernelmem.text.losses import TextTraining, document_batch, document_loss, train_language_model
from kernelmem.training import shuffled

MakeModel: TypeAlias = Callable[[], nn.Module]
"""Function without arguments that returns an untrained model; it is called with torch's random state seeded."""

Measure: TypeAlias = Callable[[nn.Module, dict[str, Tensor]], Tensor]

ON_CPU = 8  # models in a batch on the CPU; more take longer per model, since their activations exceed the cache
COPIES = 4  # of the parameters while they are trained: values, gradients, two states of AdamW
AGREEMENT = 1e-3  # relative difference of a loss under vmap; rounding is far below it
FAILURES = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)


@dataclass(frozen=True, eq=False)
class LanguageModels:
    """Task: K models, model k trained on the documents ``rows[k]`` with the seeds ``seeds[k]`` (weights, order).

    Attributes:
        make_model: makes an untrained model.
        documents: all documents, of training and of evaluation.
        rows: numbers of the training documents of each model.
        seeds: seeds of the initial weights and of the order of documents, per model.
        recipe: optimizer, schedule, batches, epochs.
        bos: token put before every document, or None.
        memory: bytes that the models of a batch may take in addition to the documents.
        measure: what is computed of documents under trained models: (model, batch) -> (n, S) in nats.
    """

    make_model: MakeModel
    documents: Documents
    rows: tuple[Tensor, ...]
    seeds: tuple[tuple[int, int], ...]
    recipe: TextTraining
    bos: int | None
    memory: int
    measure: Measure = document_loss

    def model(self, k: int) -> nn.Module:
        """Return the untrained model k.

        Raises:
            UnsupportedModelError: ``make_model`` returns something else, or a model without trainable parameters.
        """
        with random_states(self.seeds[k][0]):
            model = self.make_model()
        if not isinstance(model, nn.Module) or not any(p.requires_grad for p in model.parameters()):
            raise UnsupportedModelError(
                f"make_model() of type {type(model).__name__}"
                + (" without trainable parameters" if isinstance(model, nn.Module) else ""),
                expected="an nn.Module with parameters to train",
                hint="return an untrained language model from make_model",
            )
        return model


@dataclass(frozen=True, eq=False)
class EnsembleBits:
    """Bits of N documents under each of K models.

    Attributes:
        bits: (K, N, S) float64, S what ``measure`` computes; 1 for the loss.
        note: a remark if the models were trained one after the other, or "".
        parameters: number of trained parameters of a model.
    """

    bits: Tensor
    note: str
    parameters: int


def train_ensemble(task: LanguageModels, report: Callable[[int, int], object]) -> EnsembleBits:
    """Train the models and return the bits of every document under each.

    Model k is what :func:`train_language_model` makes of it with its documents and its order seed, up to rounding.

    Args:
        task: models and documents.
        report: called with (epochs done, epochs of all models).

    Raises:
        InputError: token ids beyond the vocabulary, documents without losses, or a model that does not fit into memory.
        UnsupportedModelError: not a causal language model. NumericalError: a model that diverged.
    """
    first = task.model(0)
    lm = causal_lm(first, bos=task.bos)
    check_vocabulary(task.documents, lm.vocabulary)
    batch = _on_device(document_batch(task.documents, bos=task.bos), first)
    length = batch["input_ids"].shape[1]
    if lm.context is not None and length > lm.context:
        raise InputError(
            f"documents with up to {length} tokens (with BOS) for a {lm.name} of {lm.context} positions",
            expected=f"at most {lm.context} tokens",
            hint="cut the documents into shorter ones",
        )
    n_targets = (batch["labels"] != -100).sum(1).cpu()
    empty = [k for k, rows in enumerate(task.rows) if not int(n_targets[rows].sum())]
    if empty:
        raise InputError(
            f"{len(task.documents)} documents, of which model {empty[0]} gets none with a loss",
            expected="documents with at least one token that has a loss",
            hint="pass bos= if training puts a token before every document, or leave short documents out",
        )
    parts: list[Tensor] = [torch.empty(0)] * len(task.rows)
    reason = _reason_against_vmap(task, batch)
    done, total = 0, task.recipe.epochs * len(task.rows)
    report(0, total)
    for group in _groups(task, batch) if not reason else ([k] for k in range(len(task.rows))):
        start = done

        def after_epoch(epoch: int, _: int, size: int = len(group), start: int = start) -> None:
            report(start + size * epoch, total)

        results = (_train_one if reason else _train_together)(task, group, batch, after_epoch)
        for k, result in zip(group, results, strict=True):
            parts[k] = result
        done += task.recipe.epochs * len(group)
    bits = torch.stack(parts)
    diverged = (~bits.isfinite()).flatten(1).any(1).nonzero()[:, 0].tolist()
    if diverged:
        raise NumericalError(
            f"losses that are not finite, of models {', '.join(map(str, diverged[:8]))}{', ...' * (len(diverged) > 8)}",
            expected="finite losses of every document under every model",
            hint=f"lower the learning rate, {task.recipe.lr:g}, in the recipe",
        )
    note = f"models were trained one after the other: {reason}" if reason else ""
    return EnsembleBits(bits, note, sum(p.numel() for p in first.parameters() if p.requires_grad))


def as_make_model(value: MakeModel) -> MakeModel:
    """Return a function without arguments, or a class of modules.

    Raises:
        InputError: another value.
    """
    if isinstance(value, nn.Module):
        raise InputError(
            f"make_model, a {type(value).__name__}",
            expected="a function that returns a new model",
            hint="pass make_model=lambda: Model(...), so that every model has its own weights",
        )
    check_callable(value, "make_model", (), types=True)
    return value


def as_recipe(value: TextTraining | None, default: TextTraining) -> TextTraining:
    """Return a training recipe; None: the default.

    Raises:
        InputError: another value.
    """
    if value is None:
        return default
    check_instance(value, "recipe", TextTraining, hint="pass recipe=km.text.TextTraining(epochs=24)")
    return value


def _on_device(batch: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    device = next(p.device for p in model.parameters())
    return {name: values.to(device) for name, values in batch.items()}


class _Measured(nn.Module):
    """Losses, or something else, of documents under a model, as a module whose parameters are those of the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, measure: Measure, ids: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        return measure(self.model, {"input_ids": ids, "labels": labels, "attention_mask": mask})


class _Stack:
    """K models of one architecture, each parameter and buffer stacked to a tensor (K, ...)."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in models]
        if any(other != shapes[0] for other in shapes):
            raise UnsupportedModelError(
                "make_model() with different parameters in different calls",
                expected="one architecture",
                hint="draw nothing but initial weights at random",
            )
        modules = [_Measured(model) for model in models]
        self.module = modules[0]
        states = [{**dict(module.named_parameters()), **dict(module.named_buffers())} for module in modules]
        self.values = {name: torch.stack([state[name].detach() for state in states]) for name in states[0]}
        self.trained = [
            self.values[name].requires_grad_() for name, p in self.module.named_parameters() if p.requires_grad
        ]

    def measured(self, measure: Measure, batch: dict[str, Tensor], in_dim: int | None) -> Tensor:
        """Return ``measure`` (K, b, S) of rows (K, b, T), or (b, T) if ``in_dim`` is None."""

        def call(values: dict[str, Tensor], *rows: Tensor) -> Tensor:
            return functional_call(self.module, values, (measure, *rows))

        rows = (batch["input_ids"], batch["labels"], batch["attention_mask"])
        # the fused attention of torch has no rule for vmap, which would loop over the models
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return vmap(call, in_dims=(0, in_dim, in_dim, in_dim))(self.values, *rows)


def _rows(batch: dict[str, Tensor], positions: Tensor) -> dict[str, Tensor]:
    """Return documents without the padding that none of them needs."""
    length = int(batch["attention_mask"][positions].sum(-1).max())
    return {name: values[positions][..., : max(1, length)] for name, values in batch.items()}


def _reason_against_vmap(task: LanguageModels, batch: dict[str, Tensor]) -> str:
    """Return why the models cannot be trained in one batch, "" if they can: one step of one model is tried."""
    rows = _rows(batch, task.rows[0][: task.recipe.batch])
    model = task.model(0)
    try:
        with standard_modes(), torch.enable_grad():
            stack = _Stack([model])
            stack.module.train()
            losses = stack.measured(document_loss, rows, None)
            torch.autograd.grad(losses.sum(), stack.trained, allow_unused=True)
            expected = document_loss(model, rows).detach()
    except FAILURES as error:
        lines = str(error).splitlines() or ["no message"]
        return f"torch.func.vmap refuses {type(model).__name__} ({lines[0][:100]})"
    difference = float((losses[0].detach() - expected).abs().max()) / max(1e-6, float(expected.abs().max()))
    return "" if difference < AGREEMENT else f"{type(model).__name__} differs under torch.func.vmap"


def _groups(task: LanguageModels, batch: dict[str, Tensor]) -> Iterator[list[int]]:
    """Yield numbers of models that are trained together: as many documents each, and at most ``memory`` bytes.

    Raises:
        InputError: a single model does not fit.
    """
    model = task.model(0).train()
    rows = _rows(batch, task.rows[0][: task.recipe.batch])
    with standard_modes(), torch.enable_grad():
        _, storages = saved_storages(lambda: document_loss(model, rows))
    needed = COPIES * sum(p.nbytes for p in model.parameters()) + 2 * sum(size for size, _ in storages.values())
    if needed > task.memory:
        raise InputError(
            f"a {type(model).__name__} that needs {needed:,} bytes; memory={task.memory:,}",
            expected="memory for one model at a time",
            hint=f"pass memory={needed} or more, or a recipe with smaller batches",
        )
    size = max(1, task.memory // max(1, needed))
    if next(model.parameters()).device.type == "cpu":
        size = min(size, ON_CPU)
    by_length: dict[int, list[int]] = {}
    for k, own_rows in enumerate(task.rows):
        by_length.setdefault(len(own_rows), []).append(k)
    for group in by_length.values():
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _train_together(
    task: LanguageModels, group: list[int], batch: dict[str, Tensor], after_epoch: Callable[[int, int], object]
) -> Tensor:
    """Return the bits (G, N, S) of all documents under the models of a group, trained in one batch."""
    recipe = task.recipe
    stack = _Stack([task.model(k) for k in group])
    optimizer = torch.optim.AdamW(stack.trained, lr=recipe.lr, weight_decay=recipe.weight_decay)
    rows = torch.stack([task.rows[k] for k in group])
    n_targets = (batch["labels"] != -100).sum(1)
    orders = [_order(task, k) for k in group]
    epochs = [[torch.stack(parts) for parts in zip(*batches, strict=True)] for batches in zip(*orders, strict=True)]
    steps, step = sum(map(len, epochs)), 0
    stack.module.train()
    for epoch, batches in enumerate(epochs, start=1):
        for positions in batches:
            chosen = rows.gather(1, positions)
            with standard_modes(), torch.enable_grad():
                losses = stack.measured(document_loss, _rows(batch, chosen), 0).sum((1, 2))
                counts = n_targets[chosen].sum(1).clamp_min(1)
                gradients = torch.autograd.grad((losses / counts).sum(), stack.trained, allow_unused=True)
            _set_gradients(stack.trained, gradients, recipe.clip)
            for parameters in optimizer.param_groups:
                parameters["lr"] = recipe.lr * recipe.lr_share(step, steps)
            optimizer.step()
            step += 1
        after_epoch(epoch, recipe.epochs)
    stack.module.eval()
    return _evaluate(lambda part: stack.measured(task.measure, part, None), task, batch)


def _order(task: LanguageModels, k: int) -> Iterator[tuple[Tensor, ...]]:
    """Iterate over the epochs of model k: batches of positions in its rows, as in ``train_language_model``."""
    seed = seed_sequence(task.seeds[k][1], ["order", "model"])["order"]
    return shuffled(len(task.rows[k]), task.recipe.batch, epochs=task.recipe.epochs, seed=seed)


def _set_gradients(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], clip: float | None) -> None:
    """Set gradients (K, ...), scaled down for each of the K models whose norm is larger than ``clip``."""
    scale = None
    if clip is not None:
        squares = [g.flatten(1).square().sum(1) for g in gradients if g is not None]
        scale = (clip / (torch.stack(squares).sum(0).sqrt() + 1e-6)).clamp_max(1)  # as nn.utils.clip_grad_norm_
    for p, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and scale is not None:
            gradient = gradient * scale.view(-1, *[1] * (gradient.ndim - 1))
        # torch's fused updates on the CPU read the gradient in memory order and ignore its strides
        p.grad = None if gradient is None else gradient.contiguous()


def _train_one(
    task: LanguageModels, group: list[int], batch: dict[str, Tensor], after_epoch: Callable[[int, int], object]
) -> Tensor:
    """Return the bits (1, N, S) of all documents under one model."""
    (k,) = group
    model = task.model(k)
    own = Documents(tuple(task.documents[int(i)] for i in task.rows[k]))
    train_language_model(model, own, task.recipe, bos=task.bos, seed=task.seeds[k][1], progress=after_epoch)
    return _evaluate(lambda part: task.measure(model, part)[None], task, batch)


def _evaluate(
    measured: Callable[[dict[str, Tensor]], Tensor], task: LanguageModels, batch: dict[str, Tensor]
) -> Tensor:
    """Return what is measured of all documents, in bits, (K, N, S)."""
    with standard_modes(), torch.no_grad():
        parts = [
            measured(_rows(batch, positions)).to("cpu", torch.float64)
            for positions in torch.arange(len(task.documents)).split(task.recipe.batch)
        ]
    return torch.cat(parts, 1) / math.log(2)
