"""``kernelmem text audit``: what a language model memorized of its training documents, as a report."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from kernelmem.cli.options import DEVICE, check_report_directory, command_line, default_hint

if TYPE_CHECKING:  # torch is slow to import, and --help does not need it
    from kernelmem.cli.text.inputs import AuditedText

OWN = ("tokenizer", "train", "unseen", "canaries", "reference", "bos")  # options that need --model


@dataclass(frozen=True)
class TextCommand:
    """Audit what a language model memorized of its training documents: membership, extraction, canaries, and change.

    kernelmem text audit writes the report DIR/audit.html and the numbers DIR/audit.json, DIR/documents.csv and DIR/spans.csv.
    They contain no text of documents unless --reveal asks for it. Without --model, a small language model is trained on the help
    topics of Python with random canaries, in about a minute.

    Files of documents: in a .txt file blank lines separate documents; in a .jsonl file every line is a JSON object with the
    document in the field "text".
    """

    action: Annotated[Literal["audit"], tyro.conf.Positional]
    """Action: audit measures and writes the report."""
    model: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="PACKAGE.MODULE:FACTORY", help_behavior_hint=default_hint("train the built-in language model")
        ),
    ] = None
    """Function that returns the language model, a torch.nn.Module (of Hugging Face or any other whose output for token ids are
    logits), or the pair (model, tokenizer). Its code is executed."""
    tokenizer: Annotated[
        str | None,
        tyro.conf.arg(metavar="PACKAGE.MODULE:FACTORY", help_behavior_hint=default_hint("the one --model returns")),
    ] = None
    """Function that returns the tokenizer: an object with encode and decode, or a function from text to token ids."""
    train: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint=default_hint("built-in"))] = None
    """Documents that the model was trained on, .txt or .jsonl."""
    unseen: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint=default_hint("built-in"))] = None
    """Documents of the same kind that it was not trained on, best drawn at random before the training, .txt or .jsonl."""
    canaries: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE.json", help_behavior_hint=default_hint("built-in, or none"))
    ] = None
    """Canaries that were inserted in the training documents, written by Canaries.save."""
    reference: Annotated[
        str | None,
        tyro.conf.arg(metavar="PACKAGE.MODULE:FACTORY", help_behavior_hint=default_hint("built-in, or none")),
    ] = None
    """Function that returns a model with the same tokens that was not trained on the documents, such as the model before a
    fine-tune."""
    bos: Annotated[int | None, tyro.conf.arg(metavar="TOKEN", help_behavior_hint=default_hint("none"))] = None
    """Token id that training put before every document; without it, the first token of a document has no loss."""
    reveal: Literal["nothing", "canaries", "spans", "all"] = "nothing"
    """Text in the report: nothing; canaries, which are synthetic; spans, also the ends of at most 20 extracted spans; all, also
    spans and highlighted documents, which needs --reason."""
    reason: str = ""
    """Reason for revealing text, which the report keeps."""
    seed: int = 0
    """Seed of the audit, and of the built-in documents, canaries and weights."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("out/text_audit")
    """Directory of the report."""
    overwrite: bool = False
    """Replace an older report in the directory."""
    training: str = ""
    """Description of how the model was trained, for the report."""
    auditor: str = ""
    """Person or organization that runs the audit, for the report."""
    purpose: str = ""
    """Reason for the audit, for the report."""
    device: DEVICE = "cpu"
    """Device of the user's models, in the notation of torch."""
    json: bool = False
    """Print audit.json instead of the summary."""

    def run(self) -> None:
        """Train or load the language model, audit it, write the report and print a summary."""
        from kernelmem.auditing.text import TextAuditOptions, text_audit
        from kernelmem.core.errors import printable

        self._check_options()  # before a minute of training, not after
        audited = self._audited()
        options = TextAuditOptions(
            encode=audited.encode,
            decode=audited.decode,
            trained_on=audited.rows,
            contexts=audited.contexts,
            reveal=None if self.reveal == "nothing" else self.reveal,
            reason=self.reason,
            name=audited.name,
            training=self.training or audited.training or "not described",
            reproduce=command_line(
                self,
                "kernelmem text audit",
                ("model", *OWN, "reveal", "reason", "seed", "training", "auditor", "purpose"),
            ),
            auditor=self.auditor,
            purpose=self.purpose,
            overwrite=self.overwrite,
        )
        result = text_audit(
            audited.lm,
            audited.train,
            audited.unseen,
            canaries=audited.canaries,
            reference=audited.reference,
            out=self.out,
            seed=self.seed,
            options=options,
        )
        if self.json:
            print(result.to_json(), end="")
        else:
            print(f"{result}\n\n  report            {printable(str((self.out / 'audit.html').resolve()))}")

    def _audited(self) -> "AuditedText":
        """Return what is audited: the user's model and files, or the demonstration."""
        from kernelmem.cli.options import as_device
        from kernelmem.cli.text.inputs import TextSource, demonstration_text

        if self.model is not None:
            assert self.train is not None
            assert self.unseen is not None
            return TextSource(
                self.model, self.tokenizer, self.reference, self.train, self.unseen, self.canaries, self.bos,
                as_device(self.device),
            ).read()  # fmt: skip
        print("training a language model on the help topics of Python, about a minute", file=sys.stderr)
        audited, seconds = demonstration_text(self.seed)
        print(f"trained in {seconds:.1f} s", file=sys.stderr)
        return audited

    def _check_options(self) -> None:
        """Raise an InputError for options that contradict each other, and for a directory that cannot be written to."""
        from kernelmem.core.errors import InputError

        given = [name for name in OWN if getattr(self, name) is not None]
        if self.model is None and given:
            raise InputError(
                f"--{given[0]} without --model",
                expected="the language model that it belongs to",
                hint="pass --model PACKAGE.MODULE:FACTORY, or omit it to audit the built-in model",
            )
        if self.model is not None and (self.train is None or self.unseen is None):
            raise InputError(
                f"--model without --{'train' if self.train is None else 'unseen'}",
                expected="both --train and --unseen",
                hint="pass the documents that the model was trained on, and others of the same kind as a control",
            )
        if self.reveal == "all" and not self.reason.strip():
            raise InputError(
                "--reveal all without --reason",
                expected="a reason, which the report keeps",
                hint='pass --reason "..." that says why training text is shown, and to whom',
            )
        if self.reason and self.reveal == "nothing":
            raise InputError(
                "--reason without --reveal",
                expected="both",
                hint="pass --reveal canaries, spans or all, or omit --reason",
            )
        check_report_directory(self.out, overwrite=self.overwrite)
