"""Capacity of a language model: bits of random strings that its training memorizes."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from kernelmem.core import InputError, Progress, UnsupportedModelError
from kernelmem.core.checks import as_count, as_list, seed_sequence
from kernelmem.core.options import MEMORY, as_bytes, as_progress
from kernelmem.memorization.shadows.masks import model_seeds
from kernelmem.text.documents import Documents
from kernelmem.text.language_models import model_logits
from kernelmem.text.losses import TextTraining
from kernelmem.text.retraining.capacity_result import Capacity
from kernelmem.text.retraining.ensemble import LanguageModels, MakeModel, as_make_model, as_recipe, train_ensemble

RECIPE = TextTraining(batch=64, lr=0.01, weight_decay=0.0)
TEMPERATURES, FLOORS = (1.0, 1.5, 2.0, 4.0), (0.0, 0.01, 0.1, 0.3)
MAX_SYMBOLS, MAX_LENGTH, MAX_STRINGS, MAX_STEPS, MAX_MODELS = 2**17, 2**14, 2**24, 10**7, 1000


def capacity(
    make_model: MakeModel,
    *,
    strings: Sequence[int] = (250, 500, 1000),
    symbols: int = 64,
    length: int = 8,
    steps: int = 2500,
    models: int = 2,
    recipe: TextTraining | None = None,
    seed: int = 0,
    memory: int | str = MEMORY,
    progress: Progress = None,
) -> Capacity:
    """Measure how many bits per parameter a language model memorizes, by training it on random strings.

    N strings of S symbols, uniform over V, have N S log₂ V bits that no model can predict but by memory:

        memorized = N S log₂ V − L,    L = −log₂ Σ_e w_e 2^(−L_e),

    where L is the code length of all N strings given the weights: a mixture of the model at 4 temperatures × 4 floors,
    p_e = (1 − f) softmax(z / τ) + f / V, and of the uniform distribution (w = 1/2), whose weights are paid. This is a valid
    code, unlike the shorter of two codes for each string or token: for strings that the weights do not depend on, the
    probability of b memorized bits or more is at most 2^(−b). The control, fresh strings of the same law, reads at most 0
    up to that chance.

    The result is a lower bound of what the model could hold, limited by training: it usually rises with ``steps``.

    Args:
        make_model: function without arguments that returns an untrained model of token ids 0..V, where V is put before each
            string as BOS; see :func:`counterfactual`. Its logits of the first V tokens are used.
        strings: numbers N of strings, one or several.
        symbols: number V of symbols.
        length: number S of symbols of a string.
        steps: optimizer steps of every model, rounded up to whole passes over the strings.
        models: models per number of strings, each with strings of its own.
        recipe: optimizer and batches; its epochs are replaced. None: batches of 64, lr 0.01, no weight decay.
        seed: seed of strings, initial weights and batches.
        memory: bytes that the models of a batch may take.
        progress: called with (epochs done, epochs of all models), for each number of strings.

    Raises:
        InputError: a number out of range, or repeated numbers of strings. UnsupportedModelError: a model that does not take
            token ids 0..V, or gives fewer than V logits. NumericalError: a model that diverged.

    Cost: ``models`` trainings of ``steps`` steps per number of strings, in one batch where vmap allows; with the defaults
    13 s per model of 4,500 parameters on one core.

    Source: Morris et al. 2025, with another code length; mixtures: Rissanen 1984.

    >>> result = capacity(lambda: nn.Embedding(5, 4), strings=[6], symbols=4, length=3, steps=1)
    >>> result.memorized.shape, bool((result.memorized >= -1).all())
    (torch.Size([1, 2]), True)
    """
    as_make_model(make_model)
    counts = _as_counts(strings)
    symbols, length = as_count(symbols, "symbols", minimum=2, maximum=MAX_SYMBOLS), as_count(
        length, "length", maximum=MAX_LENGTH
    )  # fmt: skip
    steps, models = as_count(steps, "steps", maximum=MAX_STEPS), as_count(models, "models", maximum=MAX_MODELS)
    recipe, n_bytes = as_recipe(recipe, RECIPE), as_bytes(memory)
    seeds = seed_sequence(seed, [f"{kind} {n}" for n in counts for kind in ("strings", "models")])
    report = as_progress(progress, "training on random strings", "epoch")
    if counts[-1] * models * length * 2 * 8 > n_bytes:
        raise InputError(
            f"{counts[-1]:,} strings of {length:,} symbols for {models} models; memory={n_bytes:,}",
            expected="strings that fit into memory",
            hint=f"pass memory={counts[-1] * models * length * 16}, or fewer strings",
        )

    def make() -> nn.Module:
        return FirstLogits(make_model(), symbols)

    memorized, fresh, steps_made, note, parameters = [], [], [], "", 0
    for n in counts:
        generator = torch.Generator().manual_seed(seeds[f"strings {n}"])
        ids = torch.randint(symbols, (2 * models * n, length), generator=generator)
        per_epoch = -(-n // recipe.batch)
        task = LanguageModels(
            make_model=make,
            documents=Documents(ids.unbind()),
            rows=tuple(torch.arange(n) + k * n for k in range(models)),
            seeds=tuple(model_seeds(seeds[f"models {n}"], k) for k in range(models)),
            recipe=replace(recipe, epochs=-(-steps // per_epoch)),
            bos=symbols,
            memory=n_bytes,
            measure=expert_losses,
        )
        trained = train_ensemble(task, report)
        lengths = trained.bits.view(models, 2 * models, n, -1).sum(2)  # of the strings of every model, by expert
        own = torch.arange(models)
        uniform = n * length * math.log2(symbols)
        memorized.append(uniform - code_length(lengths[own, own], uniform))
        fresh.append(uniform - code_length(lengths[own, own + models], uniform))
        steps_made.append(task.recipe.epochs * per_epoch)
        note, parameters = trained.note, trained.parameters
    return Capacity(
        strings=torch.tensor(counts),
        memorized=torch.stack(memorized),
        fresh=torch.stack(fresh),
        parameters=parameters,
        symbols=symbols,
        length=length,
        steps=torch.tensor(steps_made),
        recipe=recipe,
        note=note,
    )


class FirstLogits(nn.Module):
    """Language model with the logits of the first V tokens only."""

    def __init__(self, model: nn.Module, symbols: int) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise UnsupportedModelError(
                f"make_model() of type {type(model).__name__}",
                expected="an nn.Module",
                hint="return an untrained language model from make_model",
            )
        self.model, self.symbols = model, symbols

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits (n, T, V)."""
        logits = model_logits(self.model, ids)
        if logits.shape[2] < self.symbols:
            raise UnsupportedModelError(
                f"a {type(self.model).__name__} with logits of {logits.shape[2]} tokens for {self.symbols} symbols",
                expected=f"at least {self.symbols} logits, and token ids 0..{self.symbols}",
                hint=f"make models of {self.symbols + 1} tokens: one more for BOS",
            )
        return logits[..., : self.symbols]


def expert_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return code lengths in nats of each string (n, E) under the model at each temperature and floor."""
    ids = batch["input_ids"]
    logits = model_logits(model, ids)[:, :-1].to(torch.float64)
    columns = []
    for temperature in TEMPERATURES:
        log_p = (logits / temperature).log_softmax(2).gather(2, ids[:, 1:, None])[..., 0]
        for floor in FLOORS:
            values = log_p
            if floor:
                values = torch.logaddexp(
                    log_p + math.log1p(-floor), log_p.new_tensor(math.log(floor / logits.shape[2]))
                )
            columns.append(-values.sum(1))
    return torch.stack(columns, 1)


def code_length(lengths: Tensor, uniform: float) -> Tensor:
    """Return −log₂ (½ 2^(−uniform) + Σ_e 2^(−L_e) / (2 E)) of lengths (..., E) in bits.

    >>> code_length(torch.tensor([[1000.0], [3.0]]), 64.0)
    tensor([65.,  4.], dtype=torch.float64)
    """
    log2 = math.log(2)
    experts = -lengths.to(torch.float64) * log2 - math.log(2 * lengths.shape[-1])
    rest = torch.full_like(experts[..., :1], -uniform * log2 - log2)
    return -torch.cat([experts, rest], -1).logsumexp(-1) / log2


def _as_counts(strings: Sequence[int]) -> list[int]:
    """Return numbers of strings in ascending order.

    Raises:
        InputError: none, not whole numbers >= 1, or the same twice.
    """
    values = as_list(strings, "strings")
    counts = sorted(as_count(n, "strings", maximum=MAX_STRINGS) for n in values)
    if not counts or len(set(counts)) < len(counts):
        raise InputError(
            f"strings={values}", expected="one or several different numbers", hint="pass strings=(250, 500, 1000)"
        )
    return counts
