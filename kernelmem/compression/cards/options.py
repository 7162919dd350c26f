"""Options of cards: size of the network in the file, and its training."""

from dataclasses import dataclass

from kernelmem.core.checks import as_count, as_number

MAX_WIDTH = MAX_DIMENSIONS = 1024
"""Largest numbers in the header of a code, which has 10 bits for each."""


@dataclass(frozen=True)
class CardOptions:
    """Size of the network in a card, and its training.

    Attributes:
        width: number of hidden units (ReLU), at most 1,024.
        dimensions: number d of whole numbers that determine the weights, at most 1,024: the weights are initial weights plus d
            random directions times these numbers. More dimensions cost more bits for the network and fewer for the labels: few
            rows need few, 10 or 20 for a hundred.
        steps: number of steps of Adam.
        batch_size: number of rows per step.
        lr: learning rate, in units of the whole numbers per step.
        sweeps: number of times that each whole number is changed by ±1 after training, where this shortens the code.

    Raises:
        InputError: a number out of range.
    """

    width: int = 64
    dimensions: int = 150
    steps: int = 1000
    batch_size: int = 200
    lr: float = 0.6
    sweeps: int = 2

    def __post_init__(self) -> None:
        limits = {
            "width": (1, MAX_WIDTH), "dimensions": (1, MAX_DIMENSIONS), "steps": (0, 10**6), "batch_size": (1, 10**6),
            "sweeps": (0, 100),
        }  # fmt: skip
        for name, (minimum, maximum) in limits.items():
            object.__setattr__(self, name, as_count(getattr(self, name), name, minimum=minimum, maximum=maximum))
        object.__setattr__(self, "lr", as_number(self.lr, "lr", maximum=1e3, exclusive=True))
