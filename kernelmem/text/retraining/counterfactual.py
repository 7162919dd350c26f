"""Counterfactual memorization of documents: many small models, each trained on a random half of them."""

from kernelmem.core import InputError, Progress
from kernelmem.core.checks import as_count, as_seed
from kernelmem.core.options import MEMORY, as_bytes, as_progress
from kernelmem.memorization.shadows.masks import draw_masks, model_seeds
from kernelmem.statistics import as_level
from kernelmem.text.documents import as_documents
from kernelmem.text.losses import TextTraining, document_batch
from kernelmem.text.retraining.ensemble import LanguageModels, MakeModel, as_make_model, as_recipe, train_ensemble
from kernelmem.text.retraining.result import Counterfactual

MAX_MODELS = 10_000
RECIPE = TextTraining(epochs=24, batch=10)


def counterfactual(
    make_model: MakeModel,
    documents: object,
    *,
    models: int = 32,
    recipe: TextTraining | None = None,
    bos: int | None = None,
    level: float = 0.95,
    seed: int = 0,
    memory: int | str = MEMORY,
    progress: Progress = None,
) -> Counterfactual:
    """Measure how many bits of each document a training algorithm memorizes, by training with and without it.

    mem(x) = E[L(x) | x not in S] − E[L(x) | x in S], the expectation over random halves S of the documents, weights and
    batches, and L(x) = −Σ_t log₂ p(x_t | x_0 ... x_{t−1}) the code length. Bits count every token; token accuracy sees only
    tokens whose rank changes. The models come in pairs: one is trained on a half, the other on the rest, so that exactly m/2
    models see each document. The estimate is unbiased, and its standard errors are those of the m/2 differences. As S has
    a fixed size, leaving a document out gives its place to another one.

    All models are trained in one batch by ``torch.func.vmap``. Models without a rule for it (recurrent layers of torch,
    dropout) are trained one after the other by :func:`kernelmem.text.train_language_model`, which gives the same numbers up
    to rounding; the result says so.

    Args:
        make_model: function without arguments that returns an untrained model (ids (n, T) to logits (n, T, V)); torch's random
            state is seeded before each call, and restored afterwards.
        documents: token ids of n documents, as for :func:`kernelmem.text.as_documents`.
        models: number m of models, even, at least 4.
        recipe: training of each model; None: 24 epochs in batches of 10, otherwise as :class:`TextTraining`.
        bos: token id put before every document; None: the first token of a document has no loss.
        level: confidence level of intervals.
        seed: seed of the halves, the initial weights, the batches, permutations and split halves.
        memory: bytes that the models of a batch may take; more models are trained in further batches.
        progress: called with (epochs done, epochs of all models).

    Raises:
        InputError: fewer than two documents, none with a loss in some half, ids outside the vocabulary, an odd number of
            models, or an option out of range. UnsupportedModelError: not a causal language model.
            NumericalError: a model that diverged.

    Cost: m trainings on n/2 documents.

    Source: Feldman and Zhang 2020; Zhang et al. 2023 (token accuracy, 400 models).

    >>> import torch
    >>> result = counterfactual(
    ...     lambda: torch.nn.Embedding(3, 3), [[0, 1, 2, 1], [0, 2, 2, 2], [0, 1, 1, 1]], models=4,
    ...     recipe=TextTraining(epochs=2),
    ... )  # fmt: skip
    >>> result.masks.sum(0), result.bits.shape
    (tensor([2, 2, 2]), torch.Size([4, 3]))
    """
    as_make_model(make_model)
    documents = as_documents(documents)
    models = as_count(models, "models", minimum=4, maximum=MAX_MODELS)
    recipe, level, seed = as_recipe(recipe, RECIPE), as_level(level), as_seed(seed)
    bos = None if bos is None else as_count(bos, "bos", minimum=0)
    if models % 2:
        raise InputError(
            f"models={models}", expected="an even number", hint=f"models come in pairs: pass models={models + 1}"
        )
    if len(documents) < 2:
        raise InputError("one document", expected="at least two", hint="half of them are left out of each training")
    report = as_progress(progress, "training language models", "epoch")
    masks = draw_masks(0, models, len(documents), share=0.5, sampling="balanced", seed=seed)
    task = LanguageModels(
        make_model=make_model,
        documents=documents,
        rows=tuple(mask.nonzero()[:, 0] for mask in masks),
        seeds=tuple(model_seeds(seed, k) for k in range(models)),
        recipe=recipe,
        bos=bos,
        memory=as_bytes(memory),
    )
    trained = train_ensemble(task, report)
    tokens = (document_batch(documents, bos=bos)["labels"] != -100).sum(1)
    return Counterfactual.of(masks, trained.bits[..., 0], tokens=tokens, level=level, seed=seed).trained_by(
        recipe, trained.note
    )
