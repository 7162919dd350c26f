"""Validity gates and verdicts of a text audit, one verdict for each question."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from kernelmem.auditing.schema import Gate

Question: TypeAlias = Literal["membership", "extraction", "canaries", "change"]
Status: TypeAlias = Literal["found", "nothing-found", "no-claim", "not-run"]


@dataclass(frozen=True)
class TextGate:
    """A validity gate, and the verdicts that are blank if it fails.

    Attributes:
        gate: the condition and its result.
        blanks: questions whose verdict it blanks.
    """

    gate: Gate
    blanks: tuple[Question, ...]


@dataclass(frozen=True)
class TextVerdict:
    """Answer to one question. The answers to different questions need not agree.

    Attributes:
        question: "membership": can training documents be told from unseen ones; "extraction": does the model emit training
            documents more often than unseen ones; "canaries": did it memorize the inserted canaries; "change": what the
            training changed compared with the reference model.
        status: "no-claim" if a gate of this question failed; "not-run" if data are missing.
        headline: the answer in one sentence.
        detail: its numbers, or the gates that failed, or what is missing.
        ceiling: the largest effect that is compatible with the result, and the smallest that would have been found.
        limits: what the answer does not say, one sentence each.
    """

    question: Question
    status: Status
    headline: str
    detail: str
    ceiling: str
    limits: tuple[str, ...]
