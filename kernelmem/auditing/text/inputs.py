"""Documents of a text audit: texts or token ids as documents to evaluate, and the text that they share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelmem.auditing.text.options import TextAuditOptions
from kernelmem.auditing.text.redaction import document_key
from kernelmem.auditing.text.schema import TextData
from kernelmem.core.checks import as_list
from kernelmem.core.errors import InputError
from kernelmem.text import CausalLM, Documents, as_documents, duplicates, shared_text
from kernelmem.text.canary.encoding import check_encode, encode_text
from kernelmem.text.documents import check_vocabulary
from kernelmem.text.language_models import Decode, Encode, tokenizer_functions


@dataclass(frozen=True)
class Group:
    """Documents of one kind that are evaluated.

    Attributes:
        ids: their token ids, possibly cut to the context of the model.
        index: their numbers in the list that was passed.
        texts: their texts; None if token ids were passed or a document was cut.
    """

    ids: tuple[Tensor, ...]
    index: tuple[int, ...]
    texts: tuple[str, ...] | None


@dataclass(frozen=True)
class TextInputs:
    """Documents of a text audit.

    Attributes:
        train, unseen: documents that are evaluated.
        all_train: token ids of all training documents.
        encode: function from text to token ids; None if there is none.
        data: numbers and hash of the documents.
        key: key of the hashes.
    """

    train: Group
    unseen: Group
    all_train: Documents
    encode: Encode | None
    data: TextData
    key: bytes

    @property
    def texts(self) -> tuple[Sequence[str], Sequence[str]] | None:
        """Texts of the evaluated documents; None if they are not known."""
        return None if self.train.texts is None or self.unseen.texts is None else (self.train.texts, self.unseen.texts)


def encoding_functions(options: TextAuditOptions) -> tuple[Encode | None, Decode | None]:
    """Return the functions from text to token ids and back, also from a tokenizer.

    Raises:
        InputError: ``encode`` adds special tokens; text is to be revealed, and no function makes it.
    """
    encode, decode = options.encode, options.decode
    if callable(getattr(encode, "encode", None)):
        encode, own = tokenizer_functions(encode, "encode", "pass encode=tokenizer")
        decode = decode or own
    if encode is not None:
        check_encode(encode)
    if decode is None and options.reveal in ("spans", "all"):
        raise InputError(
            f'reveal="{options.reveal}" without a function from token ids to text',
            expected="decode, or a tokenizer as encode",
            hint="pass TextAuditOptions(decode=tokenizer.decode)",
        )
    return encode, decode


def read_documents(
    lm: CausalLM,
    train: object,
    unseen: object,
    options: TextAuditOptions,
    encode: Encode | None,
    *,
    seed: int,
    memory: int | str,
) -> TextInputs:
    """Return the documents to evaluate.

    Raises:
        InputError: neither texts nor token ids, texts without ``encode``, ids outside the vocabulary, no document with a loss,
            or no unseen document that is new.
    """
    given = [_read(value, name, lm.vocabulary, encode) for name, value in (("train", train), ("unseen", unseen))]
    (train_ids, train_texts), (unseen_ids, unseen_texts) = given
    shortest = 1 if lm.bos is not None else 2
    limit = lm.context if lm.context is not None else 2**62
    keys = {_key(ids) for ids in train_ids}
    is_seen = [_key(ids) in keys for ids in unseen_ids]
    source = np.random.default_rng(seed)
    chosen = []
    for ids, skipped in ((train_ids, [False] * len(train_ids)), (unseen_ids, is_seen)):
        first: dict[bytes, int] = {}
        for i, row in enumerate(ids):
            if len(row) >= shortest and not skipped[i]:
                first.setdefault(_key(row), i)
        rows = np.array(sorted(first.values()), dtype=np.int64)
        if len(rows) > options.n_documents:
            rows = np.sort(source.choice(rows, options.n_documents, replace=False))
        chosen.append(rows.tolist())
    _check_chosen(chosen, sum(is_seen), len(unseen_ids))
    cut = [sum(len(ids[i]) > limit for i in rows) for ids, rows in zip((train_ids, unseen_ids), chosen, strict=True)]
    groups = [
        Group(
            tuple(ids[i][:limit] for i in rows),
            tuple(rows),
            None if texts is None or any(cut) else tuple(texts[i] for i in rows),
        )
        for (ids, texts), rows in zip(given, chosen, strict=True)
    ]
    key, sha256 = document_key((train_ids.ids, unseen_ids.ids), options.salt)
    shared = _shared(given, chosen, options.repeat_length, memory)
    n_empty = sum(len(row) < shortest for ids in (train_ids, unseen_ids) for row in ids)
    data = TextData(
        name=options.name,
        n_train=len(train_ids),
        n_unseen=len(unseen_ids),
        n_train_used=len(chosen[0]),
        n_unseen_used=len(chosen[1]),
        train_tokens=sum(map(len, groups[0].ids)),
        unseen_tokens=sum(map(len, groups[1].ids)),
        unit="character" if train_texts is not None and unseen_texts is not None else "token",
        length=options.repeat_length,
        repeated=shared[0],
        exact_repeats=len(train_ids) - len(keys),
        seen=sum(is_seen),
        overlap=shared[1],
        n_cut=sum(cut),
        n_without_loss=n_empty,
        canary_share=None,
        sha256=sha256,
    )
    return TextInputs(groups[0], groups[1], train_ids, encode, data, key)


def _key(ids: Tensor) -> bytes:
    return ids.numpy().tobytes()


def _read(value: object, name: str, vocabulary: int, encode: Encode | None) -> tuple[Documents, tuple[str, ...] | None]:
    """Return token ids, and the texts if texts were passed.

    Raises:
        InputError: neither, or texts without ``encode``; the message does not quote a text.
    """
    rows = value if isinstance(value, list | tuple) else None
    if isinstance(value, str) or (rows and len({isinstance(row, str) for row in rows}) == 2):
        raise InputError(
            f"{name} as a single text" if rows is None else f"{name} of texts and values that are not text",
            expected="a list of texts, or of token ids",
            hint=f"pass {name}=[text_of_document_0, text_of_document_1, ...]",
        )
    if rows is not None and rows and all(isinstance(row, str) for row in rows):
        texts = tuple(as_list(rows, name))
        if encode is None:
            raise InputError(
                f"{name} with texts, and no function that gives their token ids",
                expected="encode, or token ids",
                hint="pass options=TextAuditOptions(encode=tokenizer)",
            )
        documents = Documents(tuple(torch.tensor(encode_text(encode, text), dtype=torch.int64) for text in texts))
    else:
        texts, documents = None, as_documents(value, name)
    check_vocabulary(documents, vocabulary, name)
    return documents, texts


def _check_chosen(chosen: list[list[int]], n_seen: int, n_unseen: int) -> None:
    """Check that there are documents to evaluate.

    Raises:
        InputError: there are none.
    """
    if not chosen[0]:
        raise InputError("train without a token that has a loss", expected="documents", hint="pass longer documents")
    if not chosen[1]:
        problem = "all of which are training documents" if n_seen == n_unseen else "none of which is new and has a loss"
        raise InputError(
            f"unseen with {n_unseen:,} documents, {problem}",
            expected="documents that the model was not trained on",
            hint="hold out documents before training; without them there is no control",
        )


def _shared(
    given: list[tuple[Documents, tuple[str, ...] | None]], chosen: list[list[int]], length: int, memory: int | str
) -> tuple[float, float]:
    """Return the share of repeated training text, and the share of evaluated unseen text that is training text."""
    (train, train_texts), (unseen, unseen_texts) = given
    is_text = train_texts is not None and unseen_texts is not None
    documents = list(train_texts) if is_text and train_texts is not None else train
    source = unseen_texts if is_text and unseen_texts is not None else unseen
    others = [source[i] for i in chosen[1]]
    repeated = duplicates(documents, length=length, memory=memory).share
    total = sum(map(len, others))
    return repeated, int(shared_text(documents, others, length=length, memory=memory).sum()) / max(1, total)
