"""Membership inference on documents of a language model, with gates that come first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import (
    as_list,
    as_names,
    as_number,
    as_pair,
    as_text,
    check_choice,
    check_instance,
    seed_sequence,
)
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.core.options import MEMORY
from kernelmem.memorization.membership.rates import RESOLUTION, TprAtFpr, roc
from kernelmem.statistics import Interval, as_level, auroc_interval
from kernelmem.text.documents import Documents, as_documents
from kernelmem.text.language_models import CausalLM
from kernelmem.text.losses import TokenLosses, token_losses
from kernelmem.text.membership.gates import Gate, blind_gate, permutation_p, score_gate
from kernelmem.text.membership.scores import NAMES, document_scores

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FEWEST = 20  # documents of each kind
FPRS = (0.1, 0.01)


@dataclass(frozen=True)
class ScoreRates:
    """What one membership score tells apart.

    Attributes:
        auroc: area under the ROC curve with its interval; 0.5 for a score that is equal for all documents.
        p: p-value of the AUROC under permuted membership, two-sided.
        rates: true-positive rates at false-positive rates 0.1 and 0.01, of documents above a threshold (not at it).
    """

    auroc: Interval
    p: float
    rates: tuple[TprAtFpr, ...]


@dataclass(frozen=True, eq=False, repr=False)
class TextMembership(Result):
    """Membership scores of n documents for one language model, and what they tell apart if the gates pass.

    Attributes:
        scores: name of each score to its values (n,), larger = more like a member; members first.
        members: (n,) bool.
        gates: AUROCs of what knows nothing of the training.
        results: name of each score to its rates; empty if a gate failed, because they would say nothing about training.
        k: share of tokens of "min_k" and "min_k++".
        level: confidence level.
    """

    scores: dict[str, Tensor]
    members: Tensor
    gates: tuple[Gate, ...]
    results: dict[str, ScoreRates]
    k: float
    level: float

    shapes: ClassVar[Mapping[str, str]] = {"members": "n"}

    def __post_init__(self) -> None:
        if any(len(values) != len(self.members) for values in self.scores.values()):
            raise ValueError("scores of different numbers of documents")

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the gates that failed."""
        return tuple(gate.name for gate in self.gates if gate.failed)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per document: member, and a column for each score."""
        import pandas as pd  # slow to import

        columns = {"member": self.members.numpy()} | {name: values.numpy() for name, values in self.scores.items()}
        return pd.DataFrame(columns).rename_axis("document")

    def plot(self) -> "Figure":
        """Return a figure of the AUROC of gates and scores, and of the ROC curves down to 10 expected false positives."""
        from sklearn.metrics import roc_curve  # slow to import, as matplotlib is

        from kernelmem.plotting.text import text_membership_figure

        n = int((~self.members).sum())
        curves = {
            name: roc_curve(self.members, self.scores[name], drop_intermediate=False)[:2] for name in self.results
        }
        return text_membership_figure(
            [(gate.name, _ends(gate.auroc), gate.failed) for gate in self.gates],
            {name: _ends(result.auroc) for name, result in self.results.items()},
            curves,
            smallest=min(RESOLUTION / n, 0.1),
            title=f"Membership of {len(self.members) - n:,} training documents and {n:,} unseen ones",
        )

    def __str__(self) -> str:
        """Return the gates, and the rates of every score."""
        n = int(self.members.sum())
        lines = [
            f"membership of documents: {n:,} members, {len(self.members) - n:,} unseen ({self.level:.0%} intervals)"
        ]
        lines += [f"  gate {gate}" for gate in self.gates]
        if self.failed:
            lines.append(
                f"  no rates: members and unseen documents differ without the model ({', '.join(self.failed)}), and a score"
                " may detect that instead of training"
            )
        for name, result in self.results.items():
            constant = "; the score is equal for all documents" if _is_constant(self.scores[name]) else ""
            lines.append(f"  {name:<10} AUROC {result.auroc}, p = {result.p:.2g}{constant}")
            lines += [f"    {rate}" for rate in result.rates]
        return "\n".join(lines)


def text_membership(
    lm: CausalLM | TokenLosses,
    members: object,
    unseen: object,
    *,
    reference: CausalLM | TokenLosses | None = None,
    scores: Sequence[str] | None = None,
    k: float = 0.2,
    texts: tuple[Sequence[str], Sequence[str]] | None = None,
    level: float = 0.95,
    seed: int = 0,
    memory: int | str = MEMORY,
) -> TextMembership:
    """Measure how well the losses of a language model tell training documents from unseen ones.

    Gates come first: a classifier of the documents alone, their lengths, and the loss of the reference alone should not tell
    members from unseen documents. If one does, no rate is reported: documents that were chosen after training, by date or
    source, differ in ways that any language model sees. Only documents that a random draw kept out of training are a control.

    Scores, with L the code length of the T tokens with a loss, larger = more like a member:

    - "loss": −L / T;
    - "reference": L under the reference − L;
    - "min_k": mean of the lowest ⌈k T⌉ log p (Shi et al. 2023);
    - "min_k++": the same of (log p − μ) / σ, with mean and standard deviation of log p over the vocabulary; 0 where σ = 0
      (Zhang et al. 2024);
    - "zlib": −L / bytes of the text compressed by zlib (Carlini et al. 2021); refused for texts of different lengths.

    Args:
        lm: language model, from :func:`causal_lm`; or its :func:`token_losses` on the members and then the unseen documents.
        members: token ids of training documents, at least 20.
        unseen: token ids of documents that were not trained on, at least 20.
        reference: a model that was not trained on the members, such as the base model of a fine-tune, or its losses.
        scores: names of scores; None: "loss", "min_k++", and "reference" if there is one.
        k: share of tokens, in (0, 1]; one stated number, because the largest of several rates is no rate.
        texts: the texts (members, unseen), for "zlib" and for the classifier; None: it sees n-grams of token ids.
        level: confidence level.
        seed: seed of the folds of the classifier.
        memory: limit for the log-probabilities of a batch.

    Raises:
        InputError: fewer than 20 documents of a kind, a document without a loss, a reference with another vocabulary, an
            unknown score or one that lacks its data.

    Cost: one pass of both models over all documents, and a classifier of n-grams.

    Source: gates: Duan et al. 2024; Das et al. 2024; Meeus et al. 2024.
    """
    level, k = as_level(level), as_number(k, "k", exclusive=True, maximum=1.0)
    fold_seed = seed_sequence(seed, ["folds"])["folds"]
    check_instance(lm, "lm", (CausalLM, TokenLosses), hint="pass lm=km.text.causal_lm(model)")
    names = _as_scores(scores, reference is not None)
    groups = [_as_group(members, "members"), _as_group(unseen, "unseen")]
    documents = Documents((*groups[0], *groups[1]))
    flags = np.repeat([True, False], [len(group) for group in groups])
    all_texts = None if texts is None else _as_texts(texts, groups)
    losses = _losses(lm, documents, "lm", memory)
    if bool((losses.counts == 0).any()):
        first = int((losses.counts == 0).nonzero()[0])
        place = f"members[{first}]" if first < len(groups[0]) else f"unseen[{first - len(groups[0])}]"
        raise InputError(f"{place} without a loss", expected="a token with a loss", hint="leave the document out")
    base = None
    if reference is not None:
        check_instance(reference, "reference", (CausalLM, TokenLosses), hint="pass reference=km.text.causal_lm(model)")
        if isinstance(reference, CausalLM) and isinstance(lm, CausalLM):
            _check_same_tokens(reference, lm)
        base = _losses(reference, documents, "reference", memory)
        if not torch.equal(base.counts, losses.counts) or not torch.equal(base.positions, losses.positions):
            raise InputError(
                f"a reference with losses of {len(base.positions)} tokens, and a model with losses of"
                f" {len(losses.positions)} or of others",
                expected="losses of the same tokens",
                hint="compute both with the same targets, and BOS in both or in neither",
            )
    values = {name: document_scores(name, losses, base, k, all_texts) for name in names}
    gates = [
        blind_gate(documents.ids if all_texts is None else all_texts, flags, fold_seed),
        score_gate("length", documents.lengths, flags),
    ]
    if base is not None:
        gates.append(score_gate("reference", -base.per_document() / base.counts, flags))
    open_gates = not any(gate.failed for gate in gates)
    return TextMembership(
        scores=values,
        members=torch.from_numpy(flags),
        gates=tuple(gates),
        results={name: _rates(score, flags, level) for name, score in values.items()} if open_gates else {},
        k=k,
        level=level,
    )


def _losses(source: CausalLM | TokenLosses, documents: Documents, name: str, memory: int | str) -> TokenLosses:
    """Return the losses of the tokens of members and unseen documents.

    Raises:
        InputError: losses that were computed of other documents.
    """
    if isinstance(source, CausalLM):
        return token_losses(source, documents, memory=memory, progress=False)
    lengths = documents.lengths
    if len(source.counts) != len(lengths) or bool((source.counts + source.unscored > lengths).any()):
        raise InputError(
            f"{name}, losses of {len(source.counts)} documents",
            expected=f"losses of the {len(lengths)} documents: members, then unseen ones",
            hint=f"pass {name}=km.text.token_losses(lm, [*members, *unseen])",
        )
    return source


def _check_same_tokens(reference: CausalLM, lm: CausalLM) -> None:
    """Check that two models have the same tokens.

    Raises:
        InputError: they do not.
    """
    if (reference.vocabulary, reference.bos is None) != (lm.vocabulary, lm.bos is None):
        raise InputError(
            f"a reference of {reference.vocabulary} tokens and BOS {reference.bos} for a model of {lm.vocabulary} and"
            f" {lm.bos}",
            expected="the same tokens, and BOS in both or in neither",
            hint="compare models with one tokenizer",
        )


def _ends(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high


def _is_constant(scores: Tensor) -> bool:
    return bool(scores.min() == scores.max())


def _rates(scores: Tensor, flags: np.ndarray, level: float) -> ScoreRates:
    """Return the rates of a score; no document is above the threshold of a score that is equal for all."""
    rates = roc(scores, flags, FPRS, level=level)
    if _is_constant(scores):
        rates = [
            replace(rate, value=None if rate.value is None else 0.0, low=0.0, reason=rate.reason) for rate in rates
        ]
    return ScoreRates(auroc_interval(scores, flags, level=level), permutation_p(scores.numpy(), flags), tuple(rates))


def _as_scores(scores: Sequence[str] | None, has_reference: bool) -> list[str]:
    """Return the names of scores.

    Raises:
        InputError: no name, or an unknown one.
    """
    if scores is None:
        return ["loss", *(["reference"] if has_reference else []), "min_k++"]
    names = as_names(scores, "scores") or []
    for name in names or [""]:
        check_choice(name, "scores", NAMES, hint='pass scores=("loss", "min_k++")')
    return list(dict.fromkeys(names))


def _as_group(value: object, name: str) -> tuple[Tensor, ...]:
    """Return the token ids of documents.

    Raises:
        InputError: fewer than ``FEWEST``.
    """
    documents = as_documents(value, name)
    if len(documents) < FEWEST:
        raise InputError(
            f"{name} with {len(documents)} documents",
            expected=f"at least {FEWEST}",
            hint="fewer documents say nothing about membership",
        )
    return documents.ids


def _as_texts(texts: object, groups: Sequence[Sequence[Tensor]]) -> list[str]:
    """Return the texts of members and unseen documents.

    Raises:
        InputError: another number of texts, or values that are not texts.
    """
    all_texts: list[str] = []
    for value, group, name in zip(
        as_pair(texts, "texts", ("member_texts", "unseen_texts")), groups, ("members", "unseen"), strict=True
    ):
        rows = as_list(value, "texts")
        if len(rows) != len(group):
            raise InputError(
                f"texts of {len(rows)} {name}", expected=f"{len(group)}, one per document", hint="pass them in order"
            )
        all_texts += [as_text(row, f"text of {name}") for row in rows]
    return all_texts
