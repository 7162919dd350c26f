"""The value that every theory returns: the risk it expects along one axis."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from kernelmem.core.errors import InputError

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

__all__ = ["Curve"]


@dataclass(frozen=True, eq=False)
class Curve:
    """Expected risk along one axis; tensors are (G,) float64 on the CPU.

    Attributes:
        name: what was computed.
        axis_name: what varies.
        axis: its values, increasing.
        test: mean squared error on a new row with a new noisy target, summed over outputs. It includes ``noise``.
        noise: variance of the target given the input, which no predictor can remove.
        exact: True if it holds for every n; False if it is a limit, or takes features for Gaussian ones.
        source: whose result it is.
        train: mean squared error on the (noisy) training rows, where it is known.
        clean: mean squared error against noiseless targets, where it is not ``test - noise`` (labels that flip).
        threshold: where on the axis the training error reaches 0 first, if there is such a place.
    """

    name: str
    axis_name: str
    axis: Tensor
    test: Tensor = field(repr=False)
    noise: float
    exact: bool
    source: str
    train: Tensor | None = field(default=None, repr=False)
    clean: Tensor | None = field(default=None, repr=False)
    threshold: float | None = None

    def __post_init__(self) -> None:
        for name in ("test", "train", "clean"):
            values = getattr(self, name)
            if values is not None and values.shape != self.axis.shape:
                raise InputError(
                    f"{name} of shape {tuple(values.shape)} beside an axis of shape {tuple(self.axis.shape)}",
                    expected="one value for each place of the axis",
                    do="compute both on the same axis",
                )

    @property
    def excess(self) -> Tensor:
        """(G,): test - noise, the distance from the mean target."""
        return self.test - self.noise

    def to_frame(self) -> "pandas.DataFrame":
        """One line a place: test, excess, and train and clean where they are known."""
        import pandas  # slow to import

        columns = {"test": self.test, "excess": self.excess, "train": self.train, "clean": self.clean}
        known = {name: values.numpy() for name, values in columns.items() if values is not None}
        return pandas.DataFrame(known, index=pandas.Index(self.axis.numpy(), name=self.axis_name))

    def plot(self) -> "Figure":
        """Test and training risk against the axis; the threshold is marked, infinite values are left out."""
        from kernelmem.plotting.theory import curve_figure  # matplotlib is slow to import

        return curve_figure(self)
