"""Averaged weights (EMA, SWA): which combination of the weights of the steps an AveragedModel holds.

Every update is w_avg <- w_avg + kappa (w - w_avg) with one number kappa: 1 - decay of an exponential moving average, 1/(n+1)
of an equal one, 1 of the first call, which copies. After all updates w_avg = sum_t a_t w_t with sum_t a_t = 1.

Sources: Polyak and Juditsky 1992; Izmailov et al. 2018.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kernelmem.core.errors import InputError
from kernelmem.recording.run import Run, no_averages
from kernelmem.recording.storage.average_log import Average
from kernelmem.recording.storage.checkpoints import load_model_state, model_state, state_sha256

__all__ = ["Average", "AverageTracker", "average_coefficients", "combine_coefficients", "fit_coefficient"]

ROUNDINGS = 8.0  # of an update, in units of eps (|w_avg| + |w|): the usual formulas round two or three times
LARGEST = 2.0  # kappa: beyond it nothing is averaged, and one entry could pass for a step of all
FORMULAS: tuple[Callable[[Tensor, Tensor, float], Tensor], ...] = (  # of torch.optim.swa_utils
    torch.lerp,
    lambda old, now, kappa: (1.0 - kappa) * old + kappa * now,
    lambda old, now, kappa: old + (now - old) / round(1.0 / kappa),
)
DIGITS = 6  # of a decay that a person writes down


def average_coefficients(run: Run) -> Tensor:
    """The weights a_t of w_0, ..., w_T in the averaged parameters of a run: w_avg = sum_t a_t w_t.

    a = 0; for every update a <- (1 - kappa) a + kappa e_t. They sum to 1, up to rounding.

    Args:
        run: one whose loop called ``recorder.average``.

    Returns:
        Tensor (T + 1,) float64. Cost O(T + updates).

    Raises:
        InputError: a run without averages.
    """
    if not run.averages:
        raise no_averages(run.path)
    return combine_coefficients(run.averages, len(run))


def combine_coefficients(averages: Sequence[Average], steps: int) -> Tensor:
    """The a_t of a list of updates, see :func:`average_coefficients`; (steps + 1,) float64.

    >>> combine_coefficients([Average(1, 1.0, ""), Average(2, 0.5, ""), Average(3, 0.5, "")], 3)
    tensor([0.0000, 0.2500, 0.2500, 0.5000], dtype=torch.float64)
    """
    coefficients, left = [0.0] * (steps + 1), 1.0
    for average in reversed(averages):
        coefficients[average.after_steps] += left * average.coefficient
        left *= 1.0 - average.coefficient
    return torch.tensor(coefficients, dtype=torch.float64)


def fit_coefficient(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor], now: Mapping[str, Tensor], likely: Sequence[float] = ()
) -> float:
    """The one number kappa with new = old + kappa (now - old), up to rounding in the dtype of ``new``.

    A number of ``likely`` with which one of the usual formulas gives ``new`` to the bit is taken at once. Otherwise least
    squares, every entry in units of its own rounding s = eps (|old| + |now|). A number of ``likely``, or one minus a
    short decimal (a decay), or either rounded to float32 as torch may do, is taken for kappa if the data cannot tell them
    apart: |difference| |(now - old)/s| <= 4 roundings. Where now = old every number will do, and it is 0.

    Raises:
        InputError: no such number: names the parameter with the largest mismatch.
    """
    moves = any(not torch.equal(value, old[name]) for name, value in now.items())
    for near in likely if moves else ():
        if near and any(
            all(torch.equal(formula(old[name], now[name], near), after) for name, after in new.items())
            for formula in FORMULAS
        ):
            return near
    moved, target = [], []  # in units of rounding
    for name, after in new.items():
        before, present = old[name].double(), now[name].double()
        kind = torch.finfo(after.dtype)
        unit = kind.eps * (before.abs() + present.abs()) + kind.smallest_normal * kind.eps
        moved.append(((present - before) / unit).flatten())
        target.append(((after.double() - before) / unit).flatten())
    u, v = torch.cat(moved), torch.cat(target)
    square = float(u @ u)
    kappa = float(u @ v) / square if square else 0.0
    misses = (v - kappa * u).abs()
    fits = abs(kappa) <= LARGEST and float(misses.max()) <= ROUNDINGS * max(1.0, abs(kappa))  # NaN does not
    if not fits:
        sizes = [len(part) for part in moved]
        worst = max(zip(new, misses.nan_to_num(torch.inf).split(sizes), strict=True), key=lambda pair: pair[1].max())[0]
        raise InputError(
            f"averaged weights that are not w_avg + kappa (w - w_avg) with one number kappa: at the best kappa, {kappa:.6g},"
            f" {worst} is off by {float(misses.max()):.3g} roundings",
            expected=f"at most {ROUNDINGS:g} roundings in every parameter, and |kappa| <= {LARGEST:g}",
            hint="average with one coefficient for all parameters, as torch.optim.swa_utils does, and with nothing else",
        )
    if not square:
        return 0.0
    doubt = 4 * max(float(misses.square().mean().sqrt()), 0.25) / square**0.5
    simple = [*likely, *(1.0 - round(1.0 - kappa, digits) for digits in range(1, DIGITS + 1))]
    simple += torch.tensor(simple, dtype=torch.float32).tolist()
    return next((near for near in simple if abs(near - kappa) <= doubt), kappa)


class AverageTracker:
    """An AveragedModel that a recorder updates, as it was after the last update."""

    def __init__(self, averaged: AveragedModel, model: nn.Module) -> None:
        """Refuse what is no average of ``model``.

        Raises:
            InputError: another class, other parameters, not on the CPU.
        """
        if not isinstance(averaged, AveragedModel):
            raise InputError(
                f"averaged of type {type(averaged).__name__}",
                expected="a torch.optim.swa_utils.AveragedModel",
                hint="pass AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999)), or AveragedModel(model) for SWA",
            )
        pairs = dict(averaged.module.named_parameters()), dict(model.named_parameters())
        own, other = ({name: (tuple(p.shape), p.device.type) for name, p in side.items()} for side in pairs)
        if own != other:
            raise InputError(
                f"an averaged model with {len(own)} parameters that are not those of the recorded model",
                expected="names, shapes and devices of the recorded model",
                hint="make it of the model that is recorded: AveragedModel(model)",
            )
        self.model = averaged
        self.count = 0  # updates on the tape
        self.coefficient = 1.0  # of the last one
        self.state: dict[str, Tensor] | None = None  # after the last one; None: not known
        self._names = list(own)

    def update(self, model: nn.Module, now: Mapping[str, Tensor], commit: Callable[[float, str], None]) -> None:
        """Take the update and hand its coefficient and the SHA-256 of the averaged parameters to ``commit``.

        After an error the averaged model is as it was.

        Raises:
            InputError: updates that were not seen, weights changed in between, no combination with one number.
        """
        self._check_same()
        old = model_state(self.model.module)
        try:
            self.model.update_parameters(model)
            new = model_state(self.model.module)
            kappa = self._coefficient(old, new, now)
            commit(kappa, self.sha256(new))
        except BaseException:
            load_model_state(self.model.module, old)
            self.model.n_averaged.fill_(self.count)
            raise
        self.state, self.count, self.coefficient = new, self.count + 1, kappa

    def place(self, state: Mapping[str, Tensor], averages: Sequence[Average]) -> None:
        """Put the averaged model in a state that was recorded after ``averages``; nothing but the number if there were none."""
        if averages:
            load_model_state(self.model.module, state)
        self.model.n_averaged.fill_(len(averages))
        self.agree(averages)

    def agree(self, averages: Sequence[Average]) -> None:
        """Take the averaged model as it is for the state after ``averages``."""
        self.count = len(averages)
        self.coefficient = averages[-1].coefficient if averages else 1.0
        self.state = model_state(self.model.module) if averages else None

    def matches(self, averages: Sequence[Average]) -> bool:
        """Whether the averaged model is in the state after these updates."""
        same = int(self.model.n_averaged) == len(averages)
        return same and (not averages or self.sha256(model_state(self.model.module)) == averages[-1].sha256)

    def final(self) -> dict[str, Tensor]:
        """The averaged model as it is now: parameters of the last update, buffers perhaps of ``update_bn`` since.

        Raises:
            InputError: parameters that changed since.
        """
        self._check_same()
        return model_state(self.model.module)

    def sha256(self, state: Mapping[str, Tensor]) -> str:
        """SHA-256 of the parameters in a state of the averaged model."""
        return state_sha256({name: state[name] for name in self._names})

    def _coefficient(self, old: Mapping[str, Tensor], new: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> float:
        parts = [{name: state[name] for name in self._names} for state in (old, new, now)]
        if self.count:
            return fit_coefficient(*parts, likely=(self.coefficient, 1.0 / (self.count + 1)))
        for name, value in parts[1].items():
            if not torch.equal(value, parts[2][name].to(value.dtype)):
                raise InputError(
                    f"a first average whose {name} is not that of the model",
                    expected="a copy, as AveragedModel makes it",
                    hint="use torch.optim.swa_utils.AveragedModel as it is",
                )
        return 1.0

    def _check_same(self) -> None:
        seen = int(self.model.n_averaged)
        if seen != self.count:
            raise InputError(
                f"an averaged model after {seen} updates, {self.count} of them on the tape",
                expected="every update through the recorder",
                hint="call recorder.average(averaged) in place of averaged.update_parameters(model)",
            )
        if self.state is not None:
            for name, parameter in self.model.module.named_parameters():
                if not torch.equal(parameter, self.state[name]):
                    raise InputError(
                        f"averaged parameter {name}, which has changed since the last average",
                        expected="averaged weights that change in recorder.average only",
                        hint="work on a copy of the averaged model",
                    )
