"""Comparison of two states of a language model: what a fine-tune learned and lost."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from kernelmem.core import InputError, Progress
from kernelmem.core.checks import as_count, as_list, as_text, check_choice, check_instance, describe
from kernelmem.core.options import MEMORY, as_progress
from kernelmem.statistics import as_level, auroc_interval
from kernelmem.text.documents import as_documents, check_vocabulary
from kernelmem.text.language_models import CausalLM
from kernelmem.text.losses.change import FEWEST, CanaryBits, Change, MembershipChange
from kernelmem.text.losses.result import TokenLosses
from kernelmem.text.losses.token_losses import token_losses

MARGIN, GATE_LEVEL = 0.05, 0.99  # by which the control of membership may be off, and the level of its interval
HINT = 'pass groups={"trained": documents, "unseen": other_documents}'


@runtime_checkable
class CanaryDesign(Protocol):
    """Pairs of canaries, of which one each was inserted: :class:`kernelmem.text.Canaries`."""

    @property
    def inserted(self) -> Tensor:
        """Which canary of each pair was inserted, (n,)."""
        ...  # pragma: no cover

    @property
    def repetitions(self) -> Tensor:
        """Number of its copies, (n,)."""
        ...  # pragma: no cover

    def __len__(self) -> int:
        """Return the number of pairs."""
        ...  # pragma: no cover

    @property
    def length(self) -> int:
        """Number of tokens of a secret."""
        ...  # pragma: no cover

    def ids(self, pair: int, variant: int) -> Tensor:
        """Return the token ids of a canary."""
        ...  # pragma: no cover


def compare(
    before: CausalLM,
    after: CausalLM,
    *,
    groups: Mapping[str, object],
    membership: tuple[str, str] | None = None,
    canaries: CanaryDesign | Mapping[str, CanaryDesign] | None = None,
    context: Sequence[int] = (),
    texts: Mapping[str, object] | None = None,
    level: float = 0.95,
    memory: int | str = MEMORY,
    progress: Progress = None,
) -> Change:
    """Measure what a language model learned and lost: bits of every document before minus bits after, by group.

    Gains are code lengths, −Σ log₂ p, before minus after: above 0 the model learned the document, below 0 it lost it. The
    intervals take documents as independent draws. Groups that say most together: the documents of the fine-tune, others
    that a random draw kept out of it, and old training documents. Of canaries, the secrets of inserted ones are compared
    with those of their twins: what twins gain was learned without the secret.

    For an adapter of PEFT pass ``causal_lm(model, adapter=False)`` and ``causal_lm(model, adapter=True)``.

    Args:
        before: language model before the training, from :func:`causal_lm`.
        after: language model after it, with the same tokens, BOS and precision.
        groups: name of each group to its documents (token ids, at least two), or to a pair of :class:`TokenLosses`, before
            and after, computed with targets or windows.
        membership: names of two groups, the documents of the fine-tune and exchangeable ones that were kept out of it, such as
            ("trained", "unseen"), to measure how well they are told apart.
        canaries: from :func:`canaries`, or name to canaries, such as old and new ones.
        context: token ids before every canary. Memory depends on context: try the beginning of a document and other text.
        texts: name of groups to the texts of their documents, for rates per byte.
        level: confidence level of the intervals.
        memory: limit for the log-probabilities of a batch.
        progress: a function of (done, total) passes over groups, True, False or None.

    Raises:
        InputError: models that give equal bits to everything (the same model twice, an adapter that is inert or was not
            loaded); different vocabularies, BOS or precision; a document without a loss, or to which a model gives
            probability 0; a group of one document; names that are not those of groups.

    Cost: two passes over all documents, one of each model.

    >>> from kernelmem.text import causal_lm
    >>> table = torch.zeros(2, 2)
    >>> before = causal_lm(torch.nn.Embedding.from_pretrained(table))
    >>> after = causal_lm(torch.nn.Embedding.from_pretrained(table + torch.tensor([0.0, 1.0])))
    >>> compare(before, after, groups={"ones": [[0, 1, 1], [1, 1]], "zeros": [[1, 0], [0, 0, 0]]}).gain
    tensor([ 1.0961,  0.5481, -0.8946, -1.7893], dtype=torch.float64)
    """
    for name, lm in (("before", before), ("after", after)):
        check_instance(lm, name, CausalLM, hint=f"pass {name}=km.text.causal_lm(model)")
    _check_comparable(before, after)
    level = as_level(level)
    named_groups = _as_mapping(groups, "groups", HINT)
    pair = _as_pair(membership, tuple(named_groups))
    designs = _as_canaries(canaries)
    ids_before = [as_count(i, "context", minimum=0, maximum=before.vocabulary - 1) for i in as_list(context, "context")]
    named_texts = {} if texts is None else _as_mapping(texts, "texts", 'pass texts={"trained": texts}')
    for name in named_texts:
        check_choice(name, "texts", tuple(named_groups), hint="name groups in texts as in groups")

    report, total = as_progress(progress, "comparison", "pass"), 2 * (len(named_groups) + len(designs))
    losses: dict[str, tuple[TokenLosses, TokenLosses]] = {}
    for name, value in named_groups.items():
        losses[name] = _losses(before, after, name, value, memory)
        report(2 * len(losses), total)
    bits: dict[str, CanaryBits] = {}
    for name, design in designs.items():
        bits[name] = _canary_bits((before, after), design, ids_before, memory)
        report(2 * (len(losses) + len(bits)), total)
    pairs = [*losses.values()]
    change = Change(
        names=tuple(losses),
        group=torch.repeat_interleave(torch.arange(len(pairs)), torch.tensor([len(a.counts) for a, _ in pairs])),
        document=torch.cat([torch.arange(len(a.counts)) for a, _ in pairs]),
        tokens=torch.cat([a.counts for a, _ in pairs]),
        n_bytes=torch.cat(
            [
                a.n_bytes(named_texts[name]) if name in named_texts else torch.zeros_like(a.counts)  # pyright: ignore
                for name, (a, _) in losses.items()
            ]
        ),
        before=torch.cat([a.per_document() for a, _ in pairs]),
        after=torch.cat([b.per_document() for _, b in pairs]),
        canaries=bits,
        membership=None if pair is None else _membership(losses, pair, level),
        models=(before.name, after.name),
        level=level,
    )
    _check_changed(change, after)
    return change


def _losses(
    before: CausalLM, after: CausalLM, name: str, value: object, memory: int | str
) -> tuple[TokenLosses, TokenLosses]:
    """Return the losses of the documents of a group before and after.

    Raises:
        InputError: losses of different tokens, documents without a loss or of probability 0, fewer than two.
    """
    label = f"groups[{describe(name)}]"
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, TokenLosses) for v in value):
        first, second = value
    else:
        documents = as_documents(value, label)
        check_vocabulary(documents, before.vocabulary, label)
        first, second = (token_losses(lm, documents, memory=memory, progress=False) for lm in (before, after))
    same = torch.equal(first.counts, second.counts) and torch.equal(first.positions, second.positions)
    settings = [(a.bos, a.window, a.stride) for a in (first, second)]
    if not same or settings[0] != settings[1] or settings[0][0] != before.bos:
        raise InputError(
            f"{label} with losses of other tokens, windows or BOS before and after",
            expected="losses of the same tokens in the same contexts, with the BOS of the models",
            hint="pass documents, or token_losses of both models with equal options",
        )
    if len(first.counts) < FEWEST:
        raise InputError(
            f"{label} with {len(first.counts)} documents",
            expected=f"at least {FEWEST}",
            hint="a single document has no standard error: put it in a group with others",
        )
    if bool((first.counts == 0).any()):
        number = int((first.counts == 0).nonzero()[0])
        raise InputError(f"{label}[{number}] without a loss", expected="a token with a loss", hint="leave it out")
    for losses, word in ((first, "before"), (second, "after")):
        finite = losses.per_document().isfinite()
        if not bool(finite.all()):
            raise InputError(
                f"{label}[{int((~finite).nonzero()[0])}], to which the model {word} gives probability 0",
                expected="documents of positive probability, whose bits have a difference",
                hint="leave it out",
            )
    return first, second


def _canary_bits(
    models: tuple[CausalLM, CausalLM], design: CanaryDesign, context: list[int], memory: int | str
) -> CanaryBits:
    """Return the bits of all secrets of a design after their heads, which follow the context."""
    ids_before = torch.tensor(context, dtype=torch.int64)
    documents = [
        torch.cat([ids_before, design.ids(pair, variant)]) for pair in range(len(design)) for variant in (0, 1)
    ]
    targets = [torch.arange(len(ids)) >= len(ids) - design.length for ids in documents]
    values = [
        token_losses(lm, documents, targets=targets, memory=memory, progress=False).per_document().reshape(-1, 2)
        for lm in models
    ]
    if not all(bool(bits.isfinite().all()) for bits in values):
        raise InputError(
            "canaries to which a model gives probability 0",
            expected="secrets of positive probability",
            hint="use symbols that the model can emit",
        )
    return CanaryBits(values[0], values[1], design.inserted.clone(), design.repetitions.clone())


def _membership(
    losses: Mapping[str, tuple[TokenLosses, TokenLosses]], names: tuple[str, str], level: float
) -> MembershipChange:
    """Return the AUROCs, those after the training only if the model before does not tell the groups apart."""
    members, unseen = (losses[name] for name in names)
    columns = [torch.stack([state.per_document() for state in group]) for group in (members, unseen)]
    before, after = torch.cat(columns, 1)
    counts = torch.cat([members[0].counts, unseen[0].counts])
    flags = torch.arange(len(counts)) < len(members[0].counts)
    gate = auroc_interval(-before / counts, flags, level=GATE_LEVEL)
    failed = abs(gate.value - 0.5) > MARGIN and not gate.low <= 0.5 <= gate.high
    return MembershipChange(
        *names,
        base=gate,
        loss=None if failed else auroc_interval(-after / counts, flags, level=level),
        gain=None if failed else auroc_interval(before - after, flags, level=level),
    )


def _check_comparable(before: CausalLM, after: CausalLM) -> None:
    """Check that vocabulary, BOS and precision agree.

    Raises:
        InputError: they do not.
    """
    if (before.vocabulary, before.bos) != (after.vocabulary, after.bos):
        raise InputError(
            f"models of {before.vocabulary} and {after.vocabulary} tokens, with BOS {before.bos} and {after.bos}",
            expected="the same tokens and BOS before and after",
            hint="compare models with one tokenizer, and pass the same bos to causal_lm",
        )
    if (before.dtype, before.stored_dtype) != (after.dtype, after.stored_dtype):
        dtypes = [f"{lm.stored_dtype}, computing in {lm.dtype}".replace("torch.", "") for lm in (before, after)]
        raise InputError(
            f"models of different precision: {dtypes[0]} before, and {dtypes[1]} after",
            expected="one precision, because the difference would contain rounding of the weights",
            hint="load both models in one precision, such as model.to(torch.bfloat16) for both",
        )


def _check_changed(change: Change, after: CausalLM) -> None:
    """Check that some bits differ.

    Raises:
        InputError: no bit does: the same model, or an inert adapter.
    """
    if not bool(change.gain.any()) and not any(bool(bits.gains().any()) for bits in change.canaries.values()):
        raise InputError(
            f"two models ({after.name}) that give equal bits to all {len(change.group)} documents",
            expected="a model that the training changed",
            hint="check that the weights or the adapter of the fine-tune were loaded and are active, and that before is not"
            " the same model",
        )


def _as_mapping(value: object, name: str, hint: str) -> dict[str, object]:
    """Return a dict with names as keys.

    Raises:
        InputError: not a dict, an empty one, or a key that is not a name.
    """
    if not isinstance(value, Mapping) or not value:
        raise InputError(f"{name}={describe(value)}", expected="a dict with at least one name", hint=hint)
    return {as_text(key, f"a name in {name}"): item for key, item in value.items()}


def _as_pair(value: object, names: tuple[str, ...]) -> tuple[str, str] | None:
    """Return the names of two groups, or None.

    Raises:
        InputError: not the names of two groups.
    """
    if value is None:
        return None
    pair = [name for name in value if name in names] if isinstance(value, tuple | list) and len(value) == 2 else []
    if len(set(pair)) != 2:
        raise InputError(
            f"membership={describe(value)}",
            expected="the names of two groups: documents of the fine-tune, others that were kept out",
            hint='pass groups={"trained": documents, "unseen": other_documents}, membership=("trained", "unseen")',
        )
    return pair[0], pair[1]


def _as_canaries(value: object) -> dict[str, CanaryDesign]:
    """Return canaries by name.

    Raises:
        InputError: not canaries.
    """
    if value is None:
        return {}
    named = dict(value) if isinstance(value, Mapping) else {"canaries": value}
    designs: dict[str, CanaryDesign] = {}
    for name, design in named.items():
        if not isinstance(design, CanaryDesign):
            raise InputError(
                f"canaries={describe(design)}",
                expected="Canaries, or names to Canaries",
                hint="pass km.text.canaries(...)",
            )
        designs[as_text(name, "a name in canaries")] = design
    return designs
