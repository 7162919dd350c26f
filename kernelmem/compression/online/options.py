"""Options of online codes: grids of the mixture, and blocks of rows between retrainings."""

from dataclasses import dataclass, fields
from functools import partial

from kernelmem.core.checks import as_count, as_number, as_tensor
from kernelmem.core.errors import InputError

MAX_CLASSES, MAX_GRID = 2**16, 64
SMALLEST_SHARE = 2.0**-16


@dataclass(frozen=True)
class OnlineOptions:
    """Grids of the mixture of an online code, and the blocks of a learner.

    Sender and receiver agree on them before the labels are known. The shortest of several codes, chosen after their
    lengths are known, is not a code unless the choice is paid for: let the mixture choose instead.

    Attributes:
        ridges: ridges of the kernel regressions, relative to the mean diagonal entry of the kernel.
        temperatures: positive numbers τ; probabilities are a softmax of scores divided by τ.
        floors: shares f in (0, 1) of the uniform distribution, p = (1 − f) softmax + f / C. A large f predicts label noise.
        uniform: prior weight of the uniform expert, in (0, 1): labels that nothing predicts cost at most
            −log₂(uniform) bits more than n log₂ C.
        first_block: number of rows before a learner is trained for the first time.
        growth: a learner is retrained when the number of known labels has grown by this factor, >= 1.01.

    Raises:
        InputError: a grid that is empty, longer than 64, with repeated numbers or numbers out of range; another option out
            of range.
    """

    ridges: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    temperatures: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
    floors: tuple[float, ...] = (2.0**-10, 2.0**-6, 2.0**-4, 2.0**-3, 2.0**-2, 2.0**-1)
    uniform: float = 0.5
    first_block: int = 8
    growth: float = 1.3

    def __post_init__(self) -> None:
        bounds = {"ridges": (1e-8, 1e4), "temperatures": (1e-3, 1e4), "floors": (SMALLEST_SHARE, 1 - SMALLEST_SHARE)}
        for name, (minimum, maximum) in bounds.items():
            object.__setattr__(self, name, _as_grid(getattr(self, name), name, minimum, maximum))
        uniform = as_number(self.uniform, "uniform", minimum=SMALLEST_SHARE, maximum=1 - SMALLEST_SHARE)
        object.__setattr__(self, "uniform", uniform)
        object.__setattr__(self, "first_block", as_count(self.first_block, "first_block"))
        object.__setattr__(self, "growth", as_number(self.growth, "growth", minimum=1.01, maximum=1e6))

    def __reduce__(self) -> tuple[partial["OnlineOptions"], tuple[()]]:
        """Pickle what differs from the defaults only: defaults cannot carry labels."""
        changed = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}
        return partial(OnlineOptions, **changed), ()


def _as_grid(value: object, name: str, minimum: float, maximum: float) -> tuple[float, ...]:
    grid = as_tensor(value, name)  # pyright: ignore[reportArgumentType] (checked here)
    n_distinct = len(grid.unique()) if grid.ndim == 1 else 0
    if not 1 <= n_distinct <= MAX_GRID or n_distinct < len(grid):
        raise InputError(
            f"{name} of shape {tuple(grid.shape)} with {n_distinct} distinct numbers",
            expected=f"a list of 1 to {MAX_GRID} distinct numbers",
            hint=f"pass {name}=[...], numbers from {minimum:g} to {maximum:g}",
        )
    return tuple(as_number(number, name, minimum=minimum, maximum=maximum) for number in grid.double().tolist())
