"""Result of ``capacity``: memorized bits by number of random strings, with fresh strings as control."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from kernelmem.core import Result
from kernelmem.text.losses import TextTraining

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NEAR, FAR, LEVEL = 2.5, 10.0, 0.9  # information of the strings relative to the largest memory; share of it on a plateau


@dataclass(frozen=True, eq=False, repr=False)
class Capacity(Result):
    """Memorized bits of random strings, for A numbers of strings and R models each.

    Attributes:
        strings: (A,) numbers N of strings, ascending.
        memorized: (A, R) bits, N S log₂ V minus the code length of the strings given the weights.
        fresh: (A, R) the same for strings that the models were not trained on, the control.
        parameters: number of trained parameters of a model.
        symbols: number V of symbols.
        length: number S of symbols of a string.
        steps: (A,) optimizer steps of each model.
        recipe: optimizer and batches; the number of epochs is that of ``steps``.
        note: remark on the training.
    """

    strings: Tensor
    memorized: Tensor
    fresh: Tensor
    parameters: int
    symbols: int
    length: int
    steps: Tensor
    recipe: TextTraining
    note: str

    shapes: ClassVar[Mapping[str, str]] = {"strings": "A", "memorized": "AR", "fresh": "AR", "steps": "A"}

    @property
    def information(self) -> Tensor:
        """Information of the strings in bits, N S log₂ V, (A,)."""
        return self.strings.to(torch.float64) * self.length * math.log2(self.symbols)

    @property
    def per_parameter(self) -> Tensor:
        """Memorized bits per parameter, mean over models, (A,)."""
        return self.memorized.mean(1) / self.parameters

    @property
    def standard_errors(self) -> Tensor | None:
        """Standard errors over models of ``per_parameter`` (A,), or None for one model."""
        n_models = self.memorized.shape[1]
        return None if n_models < 2 else self.memorized.std(1) / self.parameters / n_models**0.5

    @property
    def bits_per_parameter(self) -> float:
        """Largest of ``per_parameter``: a lower bound of the capacity, limited by training."""
        return float(self.per_parameter.max())

    @property
    def plateau(self) -> bool | None:
        """True if more strings do not change what is memorized, None if fewer than two numbers of strings can show it.

        These are the numbers with 2.5 to 10 times as much information as the largest memory; on a plateau all of them reach
        90 % of it. Below, the strings may limit the memory; above, the training does.
        """
        most = float(self.memorized.mean(1).max())
        ratio = self.information / max(most, 1e-9)
        inside = (ratio >= NEAR) & (ratio <= FAR)
        if int(inside.sum()) < 2 or most <= 0:
            return None
        return bool((self.memorized.mean(1)[inside] >= LEVEL * most).all())

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per number of strings."""
        import pandas as pd  # slow to import

        errors = self.standard_errors
        columns = {
            "strings": self.strings,
            "information": self.information,
            "memorized": self.memorized.mean(1),
            "fresh": self.fresh.mean(1),
            "per_parameter": self.per_parameter,
            "steps": self.steps,
        } | ({} if errors is None else {"standard_error": errors})
        return pd.DataFrame({name: values.numpy() for name, values in columns.items()})

    def plot(self) -> "Figure":
        """Draw memorized bits per parameter against the number of strings, with fresh strings as control."""
        from kernelmem.plotting.text import capacity_figure  # draws with matplotlib, slow to import

        return capacity_figure(self.strings, self.memorized, self.fresh, self.information, parameters=self.parameters)

    def __str__(self) -> str:
        R, errors = self.memorized.shape[1], self.standard_errors
        best = int(self.per_parameter.argmax())
        spread = "" if errors is None else f" ± {float(errors[best]):.2g}"
        lines = [
            f"capacity of a model of {self.parameters:,} parameters: at least {self.bits_per_parameter:.3g}{spread} bits per"
            f" parameter ({int(self.strings[best]):,} strings, {int(self.steps[best]):,} steps)",
            f"  random strings of {self.length} of {self.symbols} symbols, {R} model{'s' * (R > 1)} each; mean over models",
            "  strings  information/parameter  memorized/parameter  fresh strings (control)",
        ]
        for n, offered, value, fresh in zip(
            self.strings.tolist(), self.information.tolist(), self.per_parameter.tolist(), self.fresh.mean(1).tolist(),
            strict=True,
        ):  # fmt: skip
            control = f"{fresh / self.parameters:.4f}"
            lines.append(f"  {n:>7,}  {offered / self.parameters:>21.3g}  {value:>19.3g}  {control:>23}")
        shape = {
            True: "more strings change it by less than 10 %",
            False: "more strings change it by more than 10 %: no plateau",
            None: f"no plateau was tested, which takes two numbers of strings with {NEAR:g} to {FAR:g} times the memory",
        }[self.plateau]
        lines += [f"  {shape}", "  a lower bound limited by training: more steps, or another recipe, may reach more"]
        return "\n".join([*lines, *([f"  note: {self.note}"] if self.note else [])])
