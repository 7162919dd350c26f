"""Result of ``token_losses``: bits of every token that is a target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from kernelmem.core import InputError, Result
from kernelmem.core.checks import as_list

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

TIE = 1e-4  # nats: a smaller margin between two tokens is not decided by the weights but by rounding


@dataclass(frozen=True, eq=False, repr=False)
class TokenLosses(Result):
    """Losses of the N target tokens of n documents, in the order of the documents.

    Attributes:
        token_bits: -log₂ p(x_t | tokens before), (N,).
        token_margins: log p(x_t | ·) minus that of the most probable other token, in nats, (N,); above 0 the token is what
            greedy decoding gives.
        token_mu: mean of log₂ p over the tokens of the vocabulary, Σ_v p_v log₂ p_v (minus the entropy), (N,).
        token_sigma: standard deviation of log₂ p over the tokens of the vocabulary, (N,); 0 where it is rounding only.
        positions: number of each target in its document, from 0, (N,).
        counts: number of targets of each document, (n,).
        unscored: number of targets of each document without a loss, because nothing comes before them, (n,).
        model: name of the model.
        bos: token put before every document, or None.
        window: size of the windows in tokens; None: one pass per document.
        stride: tokens between the starts of two windows.
        notes: remarks on the input.
    """

    shapes: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "token_bits": "N",
            "token_margins": "N",
            "token_mu": "N",
            "token_sigma": "N",
            "positions": "N",
            "counts": "n",
            "unscored": "n",
        }
    )

    token_bits: Tensor
    token_margins: Tensor
    token_mu: Tensor
    token_sigma: Tensor
    positions: Tensor
    counts: Tensor
    unscored: Tensor
    model: str
    bos: int | None
    window: int | None
    stride: int | None
    notes: tuple[str, ...]

    @property
    def bits(self) -> tuple[Tensor, ...]:
        """Bits of the targets of each document, n tensors."""
        return self.split(self.token_bits)

    @property
    def correct(self) -> tuple[Tensor, ...]:
        """True where greedy decoding gives the token, n tensors; False where another token is within 1e-4 nats of it."""
        return self.split(self.token_margins >= TIE)

    @property
    def tied(self) -> tuple[Tensor, ...]:
        """True where the token and another one are the most probable, within 1e-4 nats; n tensors."""
        return self.split(self.token_margins.abs() < TIE)

    @property
    def mu(self) -> tuple[Tensor, ...]:
        """Mean of log₂ p over the vocabulary at the targets of each document, n tensors."""
        return self.split(self.token_mu)

    @property
    def sigma(self) -> tuple[Tensor, ...]:
        """Standard deviation of log₂ p over the vocabulary at the targets of each document, n tensors."""
        return self.split(self.token_sigma)

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Return values of the targets (N, ...) as one tensor per document."""
        return values.split(self.counts.tolist())

    def per_document(self) -> Tensor:
        """Return the code length of each document in bits, (n,): the sum over its targets, 0 without targets."""
        owner = torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)
        return torch.zeros(len(self.counts), dtype=torch.float64).index_add_(0, owner, self.token_bits)

    def per_byte(self, texts: Sequence[str | bytes]) -> Tensor:
        """Return bits per byte of each document, (n,), which compares models with different tokenizers.

        Args:
            texts: n texts that the targets encode, as str (counted in UTF-8) or bytes.

        Raises:
            InputError: another number of texts; an empty text with targets; targets without a loss (the first tokens of
                documents, if the model has no BOS), whose bytes would count but not their bits.
        """
        return self.per_document() / self.n_bytes(texts).clamp(min=1)

    def n_bytes(self, texts: Sequence[str | bytes]) -> Tensor:
        """Return the number of bytes of each text, (n,) int64; arguments and errors as for :meth:`per_byte`."""
        if int(self.unscored.sum()):
            raise InputError(
                f"bits per byte where {int(self.unscored.sum())} targets have no loss, since no token comes before them",
                expected="a loss for every token of the texts",
                hint="pass bos= to causal_lm, or targets= without the first tokens and texts without them",
            )
        sizes = [
            _n_bytes(text, f"texts[{i}]")
            for i, text in enumerate([] if isinstance(texts, str) else as_list(texts, "texts"))
        ]
        empty = [
            i for i, (size, count) in enumerate(zip(sizes, self.counts.tolist(), strict=False)) if count and not size
        ]
        if len(sizes) != len(self.counts) or empty:
            raise InputError(
                f"{len(sizes)} texts for {len(self.counts)} documents"
                + (f", and an empty text for document {empty[0]}" if empty else ""),
                expected="one text per document, with at least one byte if it has targets",
                hint="pass the texts that were tokenized",
            )
        return torch.tensor(sizes, dtype=torch.int64)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per target: document, position, bits, margin, correct, tied, mu, sigma."""
        import pandas as pd

        return pd.DataFrame(
            {
                "document": torch.repeat_interleave(torch.arange(len(self.counts)), self.counts).numpy(),
                "position": self.positions.numpy(),
                "bits": self.token_bits.numpy(),
                "margin": self.token_margins.numpy(),
                "correct": (self.token_margins >= TIE).numpy(),
                "tied": (self.token_margins.abs() < TIE).numpy(),
                "mu": self.token_mu.numpy(),
                "sigma": self.token_sigma.numpy(),
            }
        )

    def plot(self) -> "Figure":
        """Return a figure of bits along the documents, and of the bits per token of every document."""
        from kernelmem.plotting.text import token_losses_figure  # matplotlib is slow to import

        documents = torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)
        title = f"{len(self.token_bits):,} tokens of {len(self.counts):,} documents, {self.model}"
        return token_losses_figure(self.token_bits.numpy(), self.positions.numpy(), documents.numpy(), title=title)

    def __str__(self) -> str:
        n_targets, n_documents = len(self.token_bits), len(self.counts)
        lines = [f"TokenLosses of {self.model}: {n_targets} tokens of {n_documents} documents"]
        if n_targets:
            scored = self.counts > 0
            means = self.per_document()[scored] / self.counts[scored]
            correct, tied = self.token_margins >= TIE, self.token_margins.abs() < TIE
            lines += [
                f"  bits                 {float(self.token_bits.sum()):.6g}",
                f"  bits per token       {float(self.token_bits.mean()):.4g} over tokens,"
                f" {float(means.mean()):.4g} as mean of documents",
                f"  greedy is right      {float(correct.double().mean()):.3f} of tokens, ties {int(tied.sum())}",
            ]
        context = "one pass per document" if self.window is None else f"windows of {self.window}, stride {self.stride}"
        lines.append(f"  context              {context}, {'no BOS' if self.bos is None else f'BOS {self.bos}'}")
        if int(self.unscored.sum()):
            lines.append(f"  without a loss       {int(self.unscored.sum())} first tokens: the model has no BOS")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def _n_bytes(text: object, name: str) -> int:
    """Return the number of bytes of a text; an error does not quote it, since it may be private."""
    try:
        if isinstance(text, str | bytes):
            return len(text if isinstance(text, bytes) else text.encode())
    except UnicodeEncodeError:
        pass
    raise InputError(
        f"{name} of type {type(text).__name__}",
        expected="text in UTF-8, or bytes",
        hint="pass the texts of the documents",
    )
