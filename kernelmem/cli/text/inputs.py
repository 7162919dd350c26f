"""Language model, documents and canaries of ``kernelmem text audit``: from files and factories, or the demonstration."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kernelmem.cli.model_factory import call_factory
from kernelmem.cli.text.text_files import read_texts
from kernelmem.core.errors import InputError, printable
from kernelmem.core.tasks import one_thread
from kernelmem.text import Canaries, CanaryRows, CausalLM, causal_lm, demonstration
from kernelmem.text.language_models import Decode, Encode, tokenizer_functions


@dataclass(frozen=True)
class AuditedText:
    """What a text audit looks at.

    Attributes:
        name: name of the data.
        lm, reference: language models; reference None: none.
        train, unseen: texts.
        canaries: canaries that were inserted, or None.
        encode: text to token ids.
        decode: token ids to text, or None.
        training: description of the training; "" if it is not known.
        rows: training rows, if they are known.
        contexts: token ids to put before canaries; None: pieces of unseen documents.
    """

    name: str
    lm: CausalLM
    reference: CausalLM | None
    train: Sequence[str]
    unseen: Sequence[str]
    canaries: Canaries | None
    encode: Encode
    decode: Decode | None
    training: str = ""
    rows: CanaryRows | None = None
    contexts: tuple[Tensor, ...] | None = None


def demonstration_text(seed: int) -> tuple[AuditedText, float]:
    """Train the built-in language model on the built-in documents, on one thread; return it and the seconds."""
    started = time.perf_counter()
    with one_thread():
        made = demonstration(seed=seed)
    recipe = made.recipe
    training = (
        f"{recipe['epochs']} epochs over {len(made.members):,} documents and {len(made.canaries):,} pairs of canaries;"
        " the reference was trained on other documents"
    )
    reference = None if made.reference_model is None else causal_lm(made.reference_model, bos=made.bos)
    audited = AuditedText(
        "help topics of Python",
        causal_lm(made.model, bos=made.bos),
        reference,
        made.member_texts,
        made.unseen_texts,
        made.canaries,
        made.encode,
        made.decode,
        training,
        made.rows,
        made.contexts,
    )
    return audited, time.perf_counter() - started


@dataclass(frozen=True)
class TextSource:
    """The user's own language model and files, as named on the command line.

    Attributes:
        model: factory of the model, or of the model and its tokenizer.
        tokenizer: factory of the tokenizer, or None.
        reference: factory of the reference model, or None.
        train, unseen: files of documents.
        canaries: file of canaries, or None.
        bos: token put before every document, or None.
        device: device of the models.
    """

    model: str
    tokenizer: str | None
    reference: str | None
    train: Path
    unseen: Path
    canaries: Path | None
    bos: int | None
    device: torch.device

    def read(self) -> AuditedText:
        """Read the files and call the factories.

        Raises:
            InputError, FileCorruptError: a file cannot be read, or a factory fails or returns something else.
            UnsupportedModelError: not a causal language model.
        """
        train, unseen = read_texts(self.train, "--train"), read_texts(self.unseen, "--unseen")
        canaries = None if self.canaries is None else Canaries.load(self.canaries)
        model, tokenizer = _model_and_tokenizer(self.model, "--model")
        if self.tokenizer is not None:
            tokenizer = call_factory(self.tokenizer, "--tokenizer")
        factory = self.tokenizer or self.model
        encode, decode = tokenizer_functions(
            tokenizer,
            "no tokenizer" if tokenizer is None else f"a tokenizer of {factory} of type {type(tokenizer).__name__}",
            "return (model, tokenizer) from the factory of --model, or pass --tokenizer PACKAGE.MODULE:FACTORY",
        )
        reference = None if self.reference is None else _model_and_tokenizer(self.reference, "--reference")[0]
        lm, base = (
            None if module is None else causal_lm(module.to(self.device), bos=self.bos) for module in (model, reference)
        )
        assert lm is not None
        return AuditedText(printable(self.train.name), lm, base, train, unseen, canaries, encode, decode)


def _model_and_tokenizer(name: str, option: str) -> tuple[nn.Module, object]:
    """Return the model of a factory, and the tokenizer if the factory returns a pair.

    Raises:
        InputError: the factory fails, or returns something else.
    """
    made = call_factory(name, option)
    model, tokenizer = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{option} {name}, which returned a {type(made).__name__}",
            expected="a torch.nn.Module, or a pair (module, tokenizer)",
            hint="return the language model from the factory",
        )
    return model, tokenizer
