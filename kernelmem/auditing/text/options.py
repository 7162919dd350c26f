"""TextAuditOptions: description of documents and model, methods, and content of the files of a text audit."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kernelmem.core.checks import as_count, as_flag, as_text, check_callable, check_choice, check_instance
from kernelmem.core.errors import InputError, printable
from kernelmem.text import Sampling
from kernelmem.text.language_models import Decode, Encode

TEXTS = (
    *("name", "model_name", "reference_name", "training", "reproduce", "auditor", "purpose", "threat_model", "date"),
    *("reason", "salt"),
)
OPTIONAL = ("model_name", "reference_name", "date")
THREAT_MODEL = (
    "the attacker has the probabilities of the next token for any text, the beginnings of documents, and documents of the"
    " same kind"
)
REPRODUCE = "km.text_audit(lm, train, unseen) with model and documents of the hashes above"


@dataclass(frozen=True)
class TextAuditOptions:
    """Description of documents and model, methods, and content of the files of :func:`text_audit`.

    Attributes:
        encode: function from text to token ids without special tokens, or a tokenizer: an
            object with encode and decode, of transformers, tokenizers, tiktoken and others. Needed if documents are
            texts.
        decode: function from a list of token ids to text; None: that of a tokenizer passed as ``encode``. Needed to reveal
            spans or documents.
        trained_on: what the model was trained on, for the proof that every copy of every canary received loss: batches, the
            rows from ``Canaries.insert``, or a recorded run; see :func:`kernelmem.text.coverage`. None: not checked.
        epochs: number of epochs that batches in ``trained_on`` cover.
        prefix, suffix: numbers of tokens of prompt and continuation for extraction; None: 64 and 16, or four fifths and one
            fifth of the length that three quarters of the documents have.
        contexts: texts or token ids to put before canaries and prompts, in addition to nothing; exposure is measured after the
            first. None: 4 pieces of 24 tokens of unseen documents before canaries, and nothing before prompts.
        sampling: distribution of samples for extraction; None: that of the model, 1,000 samples.
        n_documents: largest numbers of training and of unseen documents that are evaluated; of more, a random part.
        samples: number of random secrets that each canary is ranked among, before an exact search.
        repeat_length: number of characters (tokens, if documents are token ids) from which on repeated text counts.
        n_listed: number of spans, canaries and documents that are listed one by one.
        reveal: None: no text; "canaries": text of canaries, which is synthetic; "spans": also the first and last 8 characters
            of at most 20 spans; "all": also spans and listed documents.
        reason: reason for revealing text, which the audit keeps; required with "all".
        salt: secret text that enters all hashes; those of two audits can be compared if the salts are equal, and the training
            documents are.
        name: name of the data set.
        model_name, reference_name: names of the models; None: their classes.
        training: description of how the model was trained.
        reproduce: command or call that reproduces this report.
        auditor, purpose: person or organization, and reason for the audit.
        threat_model: assumed access and knowledge of an attacker.
        date: date of the audit, YYYY-MM-DD; None: today.
        overwrite: True to replace an older report in ``out``.
    """

    encode: Encode | None = None
    decode: Decode | None = None
    trained_on: object = None
    epochs: int = 1
    prefix: int | None = None
    suffix: int | None = None
    contexts: Sequence[object] | None = None
    sampling: Sampling | None = None
    n_documents: int = 2000
    samples: int = 255
    repeat_length: int = 50
    n_listed: int = 20
    reveal: str | None = None
    reason: str = ""
    salt: str = ""
    name: str = "documents"
    model_name: str | None = None
    reference_name: str | None = None
    training: str = "not described"
    reproduce: str = REPRODUCE
    auditor: str = ""
    purpose: str = ""
    threat_model: str = THREAT_MODEL
    date: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in TEXTS:
            if name not in OPTIONAL or getattr(self, name) is not None:
                as_text(getattr(self, name), name)
        check_choice(self.reveal, "reveal", (None, "canaries", "spans", "all"))
        if self.reveal == "all" and not self.reason.strip():
            raise InputError(
                'reveal="all" without a reason',
                expected="a reason, which the audit keeps",
                hint='pass reason="..." that says why training text is shown, and to whom',
            )
        if self.encode is not None and not callable(getattr(self.encode, "encode", None)):
            check_callable(self.encode, "encode", ["text"])
        if self.decode is not None:
            check_callable(self.decode, "decode", ["ids"])
        for name, largest in (("prefix", 2**20), ("suffix", 2**20)):
            if getattr(self, name) is not None:
                as_count(getattr(self, name), name, maximum=largest)
        as_count(self.epochs, "epochs")
        as_count(self.n_documents, "n_documents", minimum=20, maximum=10**6)
        as_count(self.samples, "samples", maximum=10**6)
        as_count(self.repeat_length, "repeat_length")
        as_count(self.n_listed, "n_listed", minimum=0, maximum=1000)
        as_flag(self.overwrite, "overwrite")
        if self.sampling is not None:
            check_instance(self.sampling, "sampling", Sampling)


def printable_options(options: TextAuditOptions) -> TextAuditOptions:
    """Return the options with texts that can be written as UTF-8 and that a page shows in their own order."""
    texts = {name: getattr(options, name) for name in TEXTS if name != "salt"}
    texts["date"] = options.date or datetime.datetime.now(datetime.UTC).date().isoformat()
    return replace(options, **{name: None if text is None else printable(text) for name, text in texts.items()})
