"""Result of an online code: bits in total and of each row, weights of the experts, the stream."""

import math
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from kernelmem.compression.online import stream as streams
from kernelmem.compression.online.learner_scores import Train
from kernelmem.compression.online.options import OnlineOptions
from kernelmem.compression.online.sources import Kernels, as_source, check_memory, mixture_of
from kernelmem.core import Batch, InputError, Result
from kernelmem.core.checks import describe
from kernelmem.core.options import MEMORY, Progress, as_bytes, as_progress

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

WIDTH = 106  # of a printed line with the names of experts


@dataclass(frozen=True, eq=False, repr=False)
class OnlineCode(Result):
    """Code of labels that are predicted one after the other, each from the labels before it.

    Attributes:
        bits: length of the stream: header with the seed of the order, and coded labels.
        per_example: (n,) −log₂ q_i(y_i) of each row, in the order of the caller.
        wrong: (n,) bool, True where the most probable class was not the label, before the label was read.
        labels: (n,) int64 coded labels.
        n_classes: number C of classes.
        expert_names, expert_weights: (E,) experts of the mixture, and their weights after the last row.
        order_seed: seed of the order in which the rows are coded.
        kind: "kernel" or "learner".
        options: grids of the mixture, and blocks.
        stream: (bits / 8,) uint8 bytes of the stream.
        tolerance: a decoder reads these labels if its probabilities differ by less than this number; otherwise it raises
            a FileCorruptError.
    """

    bits: int
    per_example: Tensor
    wrong: Tensor
    labels: Tensor
    n_classes: int
    expert_names: tuple[str, ...]
    expert_weights: Tensor
    order_seed: int
    kind: str
    options: OnlineOptions
    stream: Tensor
    tolerance: float

    shapes: ClassVar = {
        "per_example": "n", "wrong": "n", "labels": "n", "expert_names": "E", "expert_weights": "E", "stream": "b",
    }  # fmt: skip

    @property
    def ideal(self) -> float:
        """Bits without the rounding of the coder and the header, Σ −log₂ q_i(y_i)."""
        return float(self.per_example.sum())

    @property
    def uniform(self) -> float:
        """Bits of the labels before anything is known, n log₂ C."""
        return len(self.labels) * math.log2(self.n_classes)

    @property
    def mistakes(self) -> int:
        """Number of rows whose most probable class was not the label, before the label was read."""
        return int(self.wrong.sum())

    @property
    def experts(self) -> dict[str, float]:
        """Weights of the experts after the last row, the largest first."""
        order = self.expert_weights.argsort(descending=True, stable=True).tolist()
        return {self.expert_names[i]: float(self.expert_weights[i]) for i in order}

    @property
    def position(self) -> Tensor:
        """Place of each row in the order of the code, (n,) int64."""
        return torch.from_numpy(np.argsort(streams.row_order(len(self.labels), self.order_seed), kind="stable"))

    def encode(self) -> bytes:
        """Return the stream in a container, from which :meth:`decode` returns the labels.

        The container adds what sender and receiver know before the labels (number of rows and of classes, options) and two
        checks of 8 bytes, of the container and of the labels. They are not counted in ``bits``: a receiver that trusts the
        transmission decodes without them.
        """
        header = streams.Header(self.kind, len(self.labels), self.n_classes, self.options)
        return streams.pack(header, self.stream.numpy().tobytes(), self.labels)

    @staticmethod
    def decode(
        data: bytes,
        source: Kernels | Train,
        *,
        x: Batch | None = None,
        memory: int | str = MEMORY,
        progress: Progress = None,
    ) -> Tensor:
        """Return the labels (n,) int64 of an encoded online code.

        Args:
            data: result of :meth:`encode`.
            source: the kernel or kernels, or the learner, that the labels were coded with.
            x: rows of the learner; None with a kernel.
            memory: limit of what is allocated besides the kernels and a learner.
            progress: called with (rows done, n), with a learner.

        Raises:
            FileCorruptError: damaged bytes, another kernel or learner, or predictions that differ by more than
                ``tolerance``. Wrong labels are never returned: their checksum is in the container.
            InputError, NumericalError: as :func:`online_code`.

        Cost: as :func:`online_code`; memory: kernels × ridges × n² numbers.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InputError(f"data={describe(data)}", expected="bytes", hint="pass the result of code.encode()")
        report, max_bytes = as_progress(progress, "decoding", "row"), as_bytes(memory)
        header, stream, digest = streams.unpack(bytes(data))
        checked = as_source(source, x)
        if (checked.kind, checked.n) != (header.kind, header.n):
            raise streams.corrupt(
                f"{header.n} labels by a {header.kind}, but a {checked.kind} of {checked.n} rows is given"
            )
        with streams.reading():
            shift, seed, coded = streams.read_header(stream)
            order = streams.row_order(header.n, seed)
        scores = checked.scores(header.n_classes, header.options, order, report)
        mixture = mixture_of(scores, header.n_classes, header.options)
        check_memory(scores, mixture, max_bytes, decoding=True)
        predictions = mixture.predict_each(scores)
        labels = torch.empty(header.n, dtype=torch.int64)
        labels[torch.from_numpy(order)] = torch.from_numpy(streams.decode_labels(coded, shift, predictions, header.n))
        if streams.label_digest(labels) != digest:
            raise streams.corrupt("labels with another checksum")
        return labels

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per example: label, bits, predicted wrongly, place in the order of the code."""
        import pandas as pd

        columns = {"label": self.labels, "bits": self.per_example, "wrong": self.wrong, "position": self.position}
        return pd.DataFrame({name: value.numpy() for name, value in columns.items()}).rename_axis("example")

    def plot(self) -> "Figure":
        """Plot the cumulative bits over the rows, compared with uniform labels, and the bits of each row."""
        from kernelmem.plotting.compression.online import online_code_figure  # matplotlib is slow to import

        return online_code_figure(self.per_example, self.wrong, self.position, self.uniform)

    def __str__(self) -> str:
        """Return lengths, mistakes, the best experts and the most expensive rows."""
        n = len(self.labels)
        share = (
            f", {self.bits / self.uniform:.1%} of the {self.uniform:,.0f} bits of uniform labels"
            if self.uniform
            else ""
        )
        experts = [f"{name} ({weight:.0%})" for name, weight in self.experts.items() if weight >= 0.1][:3]
        expensive = self.per_example.argsort(descending=True, stable=True)[:8].tolist()
        lines = [
            f"online code of {n:,} labels, {self.n_classes} classes: {self.bits:,} bits, {self.bits / n:.3f} per example{share}",
            f"  {self.kind} predictions {self.ideal:,.1f} bits; coder and header {self.bits - self.ideal:,.1f};"
            f" rows in the order of seed {self.order_seed}",
            f"  predicted wrongly before the label was read: {self.mistakes:,} of {n:,}",
            *textwrap.wrap(
                f"experts after the last row: {'; '.join(experts) or 'none with 10 %'}",
                WIDTH,
                initial_indent="  ",
                subsequent_indent="    ",
            ),
            f"  most expensive rows: {expensive}, up to {float(self.per_example.max()):.1f} bits",
            f"  decodes where probabilities are reproduced to {self.tolerance:.1g}",
        ]
        if self.n_classes > 1 and self.ideal > self.uniform - 1:
            lines.append("  the rows do not predict these labels: no bit was saved")
        return "\n".join(lines)
