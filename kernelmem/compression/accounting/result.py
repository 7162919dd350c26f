"""Account: bits of the labels that follow from the other rows, that are memorized, and that are in neither."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from kernelmem.compression.accounting.calibration import noise_entropy
from kernelmem.core.checks import ArrayLike
from kernelmem.core.files.result_files import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

N_LISTED = 8
UNBALANCED = 0.1  # share of the uniform bits that class frequencies save, from which on they are printed
NULL_BITS = 2.0  # of networks that cannot have memorized the labels


@dataclass(frozen=True, eq=False, repr=False)
class Account(Result):
    """Account of the labels of n rows, in bits.

    ::

        uniform = (uniform − left_out)  follows from the other rows
                + (left_out − network)  only the row itself says it: memorized
                + network               in neither

    Attributes:
        labels: (n,) int64.
        predicted: (n,) most probable class by the other rows.
        uniform: n log₂ C, before anything is known.
        online: length of the online code under the reference, a code that decodes without the network, with up to 40 bits
            for header and coder; None for a reference that is not a kernel.
        left_out: −log₂ of the calibrated probability of each label by all other rows, with the price of the calibration. An
            estimate, not a code, since each row uses all others. None if not ``estimable``.
        network: bits of the labels once the network is known. An estimate too, because its floor is the left-out prediction.
        noise_rate: share of wrong labels, if all wrong labels are equally likely, estimated without flags; None if not
            ``estimable``. Labels of overlapping classes are uncertain without being wrong: where a network has memorized
            them, their bits are memorized, but not noise.
        noise_rate_error: standard error of ``noise_rate``, as the rate of a population that the labels are drawn from.
            ± 1.96 errors covered the rate in 91 to 98 % of simulations (87 % with eight wrong labels), and in 88 to 97 % of
            samples of 300 digits, whose left-out predictions depend on each other.
        left_out_rows, network_rows: (n,) bits of each label; they add up to the totals without the prices of choices. If not
            ``estimable``, those of the left-out predictions are log₂ C.
        nulls: memorized bits of networks that cannot have memorized these labels, by name: −1 if the reference is as good
            as the network (in all of 5 repetitions on 1,400 digits, clean or with 20 % wrong labels). A positive null says
            that about as many of the memorized bits are not memorized: networks learn more from the other rows than the
            reference does.
        reference: description of the reference.
        initialization: how the untrained network of the nulls was initialized.
        moved_into_kernel: length of the online code under the reference minus that under the NTK of the trained network,
            which is not a code, because this kernel has learned the labels; None if it was not asked for.
        estimable: False if the reference predicts the labels no better than the uniform distribution: then what the network
            holds may follow from the other rows or not.
        n_classes: number C of classes.
    """

    labels: Tensor
    predicted: Tensor
    uniform: float
    online: float | None
    left_out: float | None
    network: float
    noise_rate: float | None
    noise_rate_error: float | None
    left_out_rows: Tensor
    network_rows: Tensor
    nulls: dict[str, float]
    reference: str
    initialization: str
    moved_into_kernel: float | None
    estimable: bool
    n_classes: int

    shapes: ClassVar = {"labels": "n", "predicted": "n", "left_out_rows": "n", "network_rows": "n"}

    @property
    def class_frequencies(self) -> float:
        """The bits by which the frequencies of the classes alone shorten the labels, n (log₂ C − H), H their entropy.

        They are part of what follows from the other rows. With one label in a hundred of the second of two classes they are
        92 % of all bits, whatever the rows are.
        """
        counts = self.labels.bincount(minlength=self.n_classes).double()
        return max(
            0.0, self.uniform - float(torch.special.entr(counts / counts.sum()).sum()) / math.log(2) * len(self.labels)
        )

    @property
    def memorized(self) -> float | None:
        """The bits that only the row itself and the network have, left_out − network; None if not estimable.

        They are memorized beyond this reference: a better one makes them fewer.
        """
        return None if self.left_out is None else self.left_out - self.network

    @property
    def memorized_rows(self) -> Tensor:
        """The memorized bits (n,) of each row."""
        return self.left_out_rows - self.network_rows

    @property
    def noise(self) -> float | None:
        """The bits of label noise, n H(r) with H(r) = h(r) + r log₂(C − 1); None if not estimable."""
        return None if self.noise_rate is None else len(self.labels) * noise_entropy(self.noise_rate, self.n_classes)

    @property
    def noise_error(self) -> float | None:
        """Half the difference of the bits of noise at one standard error above and below the noise rate."""
        if self.noise_rate is None or self.noise_rate_error is None:
            return None
        C, n = self.n_classes, len(self.labels)
        high = min(self.noise_rate + self.noise_rate_error, (C - 1) / C)
        low = max(self.noise_rate - self.noise_rate_error, 0.0)
        return n * max(0.0, noise_entropy(high, C) - noise_entropy(low, C)) / 2

    @property
    def sentence(self) -> str:
        """The account in a few sentences."""
        start = f"The labels hold {_bits(self.uniform)} bits"
        if self.left_out is None or self.memorized is None or self.noise is None or self.noise_rate is None:
            return (
                f"{start}. Not estimable: the reference ({self.reference}) predicts them no better than the uniform"
                f" distribution. {_bits(self.network)} bits are not in the network; what of the others follows from the"
                " other rows cannot be said."
            )
        null = f"null {_bits(max(self.nulls.values(), key=abs))}" if self.nulls else ""
        rate = f"estimated {self.noise_rate:.1%} ± {self.noise_rate_error:.1%} of the labels"
        if self.memorized >= NULL_BITS and self.noise <= self.memorized:
            noise = f", about {_bits(self.noise)} of them label noise ({rate})"
        else:
            noise = f"; the labels hold about {_bits(self.noise)} bits of noise ({rate})"
        held = f"{_bits(self.memorized)} more" + f" ({null})" * bool(null)
        if self.memorized < NULL_BITS:
            held = f"no more than that ({_bits(self.memorized)} bits{f', {null}' if null else ''})"
        end = f" Without the network a decoder needs {_bits(self.online)}." if self.online is not None else ""
        known = f" ({_bits(self.class_frequencies)} by the frequencies of the classes alone)" * self._is_unbalanced
        return (
            f"{start}; {_bits(self.uniform - self.left_out)} follow from the other rows{known}. The network holds {held}{noise};"
            f" {_bits(self.network)} are in neither.{end}"
        )

    @property
    def _is_unbalanced(self) -> bool:
        return self.class_frequencies > UNBALANCED * self.uniform

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per example, the most memorized first: label, prediction by the other rows, and bits."""
        import pandas as pd

        columns = {
            "label": self.labels,
            "predicted": self.predicted,
            "memorized": self.memorized_rows,
            "left_out": self.left_out_rows,
            "network": self.network_rows,
        }
        frame = pd.DataFrame({name: value.numpy() for name, value in columns.items()}).rename_axis("example")
        return frame.sort_values("memorized", ascending=False, kind="stable")

    def plot(self, images: ArrayLike | None = None) -> "Figure":
        """Return a figure: the bar of the account, the bar of the null, and the memorized bits of each row.

        With the rows as ``images``, (n, h, w), (n, h, w, 3), (n, 1, h, w) or (n, 3, h, w), the 12 most memorized are shown.
        """
        from kernelmem.plotting.compression import account_figure  # matplotlib is slow to import

        return account_figure(self, images)

    def __str__(self) -> str:
        lines = [f"account of {len(self.labels):,} labels, {self.n_classes} classes, in bits ({self.reference})"]

        def line(bits: float | None, text: str) -> None:
            if bits is not None:
                lines.append(f"  {_bits(bits):>9}  {text}")

        line(self.uniform, "uniform")
        if self.left_out is not None:
            line(self.uniform - self.left_out, "follow from the other rows (estimate)")
        if self._is_unbalanced:
            line(self.class_frequencies, "  class frequencies alone, n (log₂ C − H)")
        line(self.memorized, "memorized: in the network and in no other row (estimate)")
        if self.noise_rate is not None:
            text = (
                f"{self.noise_rate:.2%} ± {self.noise_rate_error:.2%} of the labels, ± {_bits(self.noise_error)} bits"
            )
            line(self.noise, f"  label noise, n H(r): {text}")
            lines.append(f"{'':13}(if all wrong labels are equally likely, else too low: see km.estimate_label_noise;")
            lines.append(f"{'':13}overlap of classes does not count as noise)")
        for name, bits in self.nulls.items():
            line(bits, f"  null: {name}")
        line(self.network, "in neither")
        line(self.online, "online code: without the network (decodes)")
        line(self.moved_into_kernel, "moved into the kernel by training (not a code)")
        if self.estimable:
            lines.append(f"  most memorized rows {self.memorized_rows.argsort(descending=True)[:N_LISTED].tolist()}")
        else:
            lines.append("  not estimable: the reference predicts the labels no better than the uniform distribution")
        return "\n".join(lines)


def _bits(value: float | None) -> str:
    """Return a number of bits without decimals, without a minus sign at zero."""
    return f"{round(value or 0.0):,}"
