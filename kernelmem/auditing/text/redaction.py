"""Redaction of a text audit: hashes in place of text, revealed text, and errors that quote none."""

import hashlib
import hmac
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from kernelmem.auditing.text.schema import Reveal
from kernelmem.core.errors import InputError, KernelmemError, printable

SHOWN = 8  # characters at either end of a span
SPANS_SHOWN = 20
HASH_LENGTH = 32  # hexadecimal digits


@dataclass(frozen=True)
class Redaction:
    """Hashes of token ids, and the texts that are revealed.

    Hashes are keyed by all training documents and the salt, so that short spans cannot be guessed from the hash by somebody
    who does not have the documents.

    Attributes:
        key: key of the hashes.
        reveal: text that is revealed.
        decode: function from token ids to text; None if nothing needs it.
    """

    key: bytes
    reveal: Reveal
    decode: Callable[[list[int]], str] | None

    def hash(self, ids: Tensor) -> str:
        """Return the salted hash of token ids."""
        return hmac.new(self.key, ids.numpy().tobytes(), hashlib.sha256).hexdigest()[:HASH_LENGTH]

    def canary(self, text: str) -> str | None:
        """Return the text of a canary, if it is revealed."""
        return None if self.reveal == "nothing" else printable(text)

    def span(self, ids: Tensor, rank: int) -> str | None:
        """Return the text of the span at place ``rank`` of the list: its ends, all of it, or None."""
        if self.reveal == "all":
            return self._text(ids)
        if self.reveal != "spans" or rank >= SPANS_SHOWN:
            return None
        text = self._text(ids)
        shown = min(SHOWN, len(text) // 4)
        return f"{text[:shown]} … {text[len(text) - shown :]}" if shown else "…"

    def tokens(self, ids: Tensor) -> tuple[str, ...] | None:
        """Return the text of each token of a document, if documents are revealed."""
        return tuple(self._text(token[None]) for token in ids) if self.reveal == "all" else None

    def _text(self, ids: Tensor) -> str:
        assert self.decode is not None
        try:
            text = self.decode(ids.tolist())
        except Exception as error:
            raise InputError(
                f"decode, which raised {type(error).__name__} for {len(ids)} token ids",
                expected="a function from a list of token ids to text",
                hint="check decode on the ids of a document",
            ) from None
        if not isinstance(text, str):
            raise InputError(
                f"decode, which returns {type(text).__name__}",
                expected="text",
                hint="pass decode=tokenizer.decode",
            )
        return printable(text)


def document_key(documents: Sequence[Sequence[Tensor]], salt: str) -> tuple[bytes, str]:
    """Return the key of the hashes, and the hash of all documents that is published; neither gives the other away."""
    digest = hashlib.sha256(salt.encode())
    for group in documents:
        digest.update(b"group")
        for ids in group:
            digest.update(len(ids).to_bytes(8, "little"))
            digest.update(ids.numpy().astype("<i8").tobytes())
    state = digest.digest()
    return hashlib.sha256(b"key" + state).digest(), hashlib.sha256(b"identity" + state).hexdigest()


@contextmanager
def without_quotes() -> Iterator[None]:
    """Raise errors of the library without those that caused them, whose messages may quote a document."""
    try:
        yield
    except KernelmemError as error:
        raise _without_cause(error) from None


def _without_cause(error: KernelmemError) -> KernelmemError:
    """Return the error without its cause, and without the message of the cause if it repeats that."""
    cause = error.__cause__
    message = "" if cause is None or isinstance(cause, KernelmemError) else str(cause)
    quoted = printable(message.splitlines()[0][:200]) if message else ""
    if quoted and quoted in error.given:
        given = error.given.replace(quoted, "its message is left out, as it may quote a document")
        hint = f"{error.hint}; km.text.token_losses on the same documents raises the error with its message"
        error = type(error)(given, expected=error.expected, hint=hint)
    error.__cause__ = error.__context__ = None
    return error
