"""Context of a text audit, and identity of the audited language model and documents."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Reveal: TypeAlias = Literal["nothing", "canaries", "spans", "all"]
"""Text that an audit contains: none; that of canaries, which is synthetic; the ends of findings; findings and documents."""


@dataclass(frozen=True)
class TextContext:
    """Date, author and purpose of a text audit, and the text that it contains.

    Attributes:
        date: date of the audit, YYYY-MM-DD.
        auditor: person or organization that ran the audit; "" if not stated.
        purpose: reason for the audit; "" if not stated.
        threat_model: assumed access and knowledge of an attacker.
        training: description of the training by the user.
        randomized: what was decided by random draws, one sentence: the coins of the canaries, or nothing.
        level: the results speak of this one model, not of the algorithm that trained it.
        reveal: text that the audit contains.
        reason: reason for revealing it, as the user stated it; "" if nothing is revealed.
    """

    date: str
    auditor: str
    purpose: str
    threat_model: str
    training: str
    randomized: str
    level: str
    reveal: Reveal
    reason: str


@dataclass(frozen=True)
class LanguageModelIdentity:
    """Name, size and hash of the audited language model.

    Attributes:
        name: class of the model, or the name that the user gave.
        n_parameters: number of parameters P.
        vocabulary: number V of tokens.
        bos: token before every document; None: none, and the first token of a document has no loss.
        context: largest number of tokens of a pass, if the model states it.
        dtype: precision of the computation, such as "float32".
        sha256: hash of the weights.
        reference: name of the reference model; "" without.
    """

    name: str
    n_parameters: int
    vocabulary: int
    bos: int | None
    context: int | None
    dtype: str
    sha256: str
    reference: str


@dataclass(frozen=True)
class TextData:
    """Numbers and hash of the audited documents, and the text that they share.

    Attributes:
        name: name of the data set.
        n_train, n_unseen: numbers of documents that were passed.
        n_train_used, n_unseen_used: numbers of documents that were evaluated: of equal ones the first, without those that have no
            loss, without unseen ones that equal a training document, and a random part of many.
        train_tokens, unseen_tokens: tokens of the evaluated documents.
        unit: unit of repeated text, "character" or "token".
        length: number of units from which on a repetition counts.
        repeated: share of the training text that lies in a string of this length that occurs elsewhere in it.
        exact_repeats: training documents that equal an earlier one.
        seen: unseen documents that equal a training document; they are left out.
        overlap: share of the evaluated unseen text that lies in a string of this length that occurs in a training document.
        n_cut: evaluated documents that were cut to the context of the model.
        n_without_loss: documents without a token that has a loss; they are left out.
        canary_share: share of the training tokens that are tokens of canaries; None if unknown.
        sha256: hash of training and unseen documents and of the salt, in their order.
    """

    name: str
    n_train: int
    n_unseen: int
    n_train_used: int
    n_unseen_used: int
    train_tokens: int
    unseen_tokens: int
    unit: Literal["character", "token"]
    length: int
    repeated: float
    exact_repeats: int
    seen: int
    overlap: float
    n_cut: int
    n_without_loss: int
    canary_share: float | None
    sha256: str
