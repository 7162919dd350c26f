"""Averaged weights (EMA, SWA) of an AveragedModel as a linear combination of the weights after each step.

Every update is w_avg <- w_avg + kappa (w - w_avg) with one number kappa: 1 - decay for an exponential moving average,
1/(n+1) for an equal one, 1 in the first call, which copies. After all updates w_avg = sum_t a_t w_t with sum_t a_t = 1.

Sources: Polyak and Juditsky 1992; Izmailov et al. 2018.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kernelmem.core.checks import check_instance
from kernelmem.core.errors import InputError
from kernelmem.core.files import file_system
from kernelmem.recording.run import Run, no_averages
from kernelmem.recording.storage.average_log import Average
from kernelmem.recording.storage.checkpoints import (
    averaged_path,
    load_model_state,
    model_state,
    state_sha256,
    write_averaged,
)

# allowed error of an update, in units of eps (|w_avg| + |w|): the usual formulas round two or three times
MAX_ROUNDINGS = 8.0
MAX_KAPPA = 2.0  # larger values do not average, and rounding of one entry could pass for a step of all entries
UPDATE_FORMULAS: tuple[Callable[[Tensor, Tensor, float], Tensor], ...] = (  # of torch.optim.swa_utils
    torch.lerp,
    lambda old, weights, kappa: (1.0 - kappa) * old + kappa * weights,
    lambda old, weights, kappa: old + (weights - old) / round(1.0 / kappa),
)
DECAY_DIGITS = 6  # decimals of a decay that a user writes


def average_coefficients(run: Run) -> Tensor:
    """Return the coefficients a_t of w_0, ..., w_T in the averaged parameters of a run: w_avg = sum_t a_t w_t.

    Here w_t are the weights after t of T steps. An update with coefficient kappa after t steps multiplies all a_s by
    1 - kappa and adds kappa to a_t; the first one has kappa = 1. The coefficients sum to 1, up to rounding.

    Args:
        run: a run whose loop called ``recorder.average``.

    Returns:
        Tensor (T + 1,) float64. Cost O(T + updates).

    Raises:
        InputError: the run has no averaged weights.
    """
    check_instance(run, "run", Run, hint="pass km.Run.open(directory)")
    if not run.averages:
        raise no_averages(run.path)
    return combine_coefficients(run.averages, len(run))


def combine_coefficients(averages: Sequence[Average], steps: int) -> Tensor:
    """Return the coefficients a_0, ..., a_T, (T + 1,) float64, with w_avg = sum_t a_t w_t after all updates ``averages``.

    w_t are the weights after t of T = ``steps`` steps.

    >>> combine_coefficients([Average(1, 1.0, ""), Average(2, 0.5, ""), Average(3, 0.5, "")], 3)
    tensor([0.0000, 0.2500, 0.2500, 0.5000], dtype=torch.float64)
    """
    coefficients, remaining = [0.0] * (steps + 1), 1.0
    for average in reversed(averages):
        coefficients[average.after_steps] += remaining * average.coefficient
        remaining *= 1.0 - average.coefficient
    return torch.tensor(coefficients, dtype=torch.float64)


def fit_coefficient(
    old: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    expected_coefficients: Sequence[float] = (),
) -> float:
    """Return the number kappa with new = old + kappa (weights - old), up to rounding in the dtype of ``new``.

    ``old`` and ``new`` map names to the averaged parameters before and after an update, ``weights`` to the model's. One of
    ``expected_coefficients`` for which a usual formula reproduces ``new`` to the bit is returned at once. Otherwise kappa is
    the least-squares solution, with every entry in units of its own rounding s = eps (|old| + |weights|). It is replaced by
    one of ``expected_coefficients``, by one minus a short decimal (a decay), or by either rounded to float32 as torch may
    do, if the data cannot tell them apart: |difference| |(weights - old)/s| <= 4 roundings. If weights = old, every number
    fits and kappa is 0.

    Raises:
        InputError: no such number exists; the message names the parameter with the largest mismatch.
    """
    weights_moved = any(not torch.equal(value, old[name]) for name, value in weights.items())
    for kappa in expected_coefficients if weights_moved else ():
        if kappa and any(
            all(torch.equal(formula(old[name], weights[name], kappa), value) for name, value in new.items())
            for formula in UPDATE_FORMULAS
        ):
            return kappa
    changes, targets = [], []  # (weights - old) / s and (new - old) / s
    for name, value in new.items():
        old_value, weight = old[name].double(), weights[name].double()
        float_info = torch.finfo(value.dtype)
        rounding = float_info.eps * (old_value.abs() + weight.abs()) + float_info.smallest_normal * float_info.eps
        changes.append(((weight - old_value) / rounding).flatten())
        targets.append(((value.double() - old_value) / rounding).flatten())
    scaled_changes, scaled_targets = torch.cat(changes), torch.cat(targets)
    squared_norm = float(scaled_changes @ scaled_changes)
    kappa = float(scaled_changes @ scaled_targets) / squared_norm if squared_norm else 0.0
    errors = (scaled_targets - kappa * scaled_changes).abs()
    max_error = MAX_ROUNDINGS * max(1.0, abs(kappa))
    has_solution = abs(kappa) <= MAX_KAPPA and float(errors.max()) <= max_error  # False for NaN
    if not has_solution:
        by_parameter = errors.nan_to_num(torch.inf).split([len(change) for change in changes])
        worst_parameter = max(zip(new, by_parameter, strict=True), key=lambda pair: pair[1].max())[0]
        raise InputError(
            f"averaged weights that are not w_avg + kappa (w - w_avg) with one number kappa: at the best kappa, {kappa:.6g},"
            f" {worst_parameter} is off by {float(errors.max()):.3g} roundings",
            expected=f"at most {MAX_ROUNDINGS:g} roundings in every parameter, and |kappa| <= {MAX_KAPPA:g}",
            hint="average with one coefficient for all parameters, as torch.optim.swa_utils does, and change nothing else",
        )
    if not squared_norm:
        return 0.0
    uncertainty = 4 * max(float(errors.square().mean().sqrt()), 0.25) / squared_norm**0.5
    candidates = [*expected_coefficients, *(1.0 - round(1.0 - kappa, digits) for digits in range(1, DECAY_DIGITS + 1))]
    candidates += torch.tensor(candidates, dtype=torch.float32).tolist()
    return next((value for value in candidates if abs(value - kappa) <= uncertainty), kappa)


class AverageTracker:
    """Updates an AveragedModel for a recorder, and holds its state after the last recorded update."""

    def __init__(self, averaged: AveragedModel, model: nn.Module) -> None:
        """Check that ``averaged`` is an average of ``model``.

        Raises:
            InputError: ``averaged`` is not an AveragedModel, or its parameters differ from those of ``model``.
        """
        if not isinstance(averaged, AveragedModel):
            raise InputError(
                f"averaged of type {type(averaged).__name__}",
                expected="a torch.optim.swa_utils.AveragedModel",
                hint="pass AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999)), or AveragedModel(model) for SWA",
            )
        averaged_shapes, model_shapes = (
            {name: (tuple(p.shape), p.device.type) for name, p in module.named_parameters()}
            for module in (averaged.module, model)
        )
        if averaged_shapes != model_shapes:
            raise InputError(
                f"an averaged model with {len(averaged_shapes)} parameters, which differ from those of the recorded model",
                expected="names, shapes and devices of the recorded model",
                hint="create it from the recorded model: AveragedModel(model)",
            )
        self.model = averaged
        self.count = 0  # recorded updates
        self.coefficient = 1.0  # of the last update
        self.state: dict[str, Tensor] | None = None  # after the last update; None: unknown
        self._parameter_names = list(averaged_shapes)

    @classmethod
    def of_run(
        cls, tracker: "AverageTracker | None", averaged: AveragedModel | None, model: nn.Module
    ) -> "AverageTracker":
        """Return the tracker of a run, which is made when ``averaged``, an average of ``model``, is passed first.

        Raises:
            InputError: no averaged model was passed, or another one than before.
        """
        if tracker is None and averaged is not None:
            tracker = cls(averaged, model)
        if tracker is None or (averaged is not None and averaged is not tracker.model):
            raise InputError(
                "no averaged model" if averaged is None else "another averaged model than before",
                expected="one AveragedModel per run",
                hint="pass it to the recorder: Recorder(..., averaged=averaged)",
            )
        return tracker

    def save(self, directory: Path, keep: Callable[[str], Iterable[str]]) -> None:
        """Write the averaged weights to the run in ``directory``, if there are any, and remove the files they replace.

        ``keep`` puts the SHA-256 of the new file on the tape and returns those of the replaced ones.

        Raises:
            InputError: the averaged parameters changed after the last update.
        """
        if self.count:
            for replaced_sha256 in keep(write_averaged(directory, self.final_state())):
                file_system.remove(averaged_path(directory, replaced_sha256))

    def update(self, model: nn.Module, weights: Mapping[str, Tensor], commit: Callable[[float, str], None]) -> None:
        """Update the averaged model, then call ``commit(kappa, sha256)`` to record the update.

        kappa is the coefficient of the update, sha256 the hash of the averaged parameters after it. ``weights`` maps names
        to the parameters and buffers of ``model``. After an error the averaged model is unchanged.

        Raises:
            InputError: the average was updated or changed outside the recorder, or the update has no single coefficient.
        """
        self._check_unchanged()
        old = model_state(self.model.module)
        try:
            self.model.update_parameters(model)
            new = model_state(self.model.module)
            kappa = self._update_coefficient(old, new, weights)
            commit(kappa, self.sha256(new))
        except BaseException:
            load_model_state(self.model.module, old)
            self.model.n_averaged.fill_(self.count)
            raise
        self.state, self.count, self.coefficient = new, self.count + 1, kappa

    def restore(self, state: Mapping[str, Tensor], averages: Sequence[Average]) -> None:
        """Load ``state``, the parameters and buffers of the averaged model after the updates ``averages``.

        If there are no updates, only the model's number of updates is set to 0.
        """
        if averages:
            load_model_state(self.model.module, state)
        self.model.n_averaged.fill_(len(averages))
        self.accept(averages)

    def accept(self, averages: Sequence[Average]) -> None:
        """Treat the current state of the averaged model as its state after the recorded updates ``averages``."""
        self.count = len(averages)
        self.coefficient = averages[-1].coefficient if averages else 1.0
        self.state = model_state(self.model.module) if averages else None

    def matches(self, averages: Sequence[Average]) -> bool:
        """Return True if the averaged model has the number of updates and the parameters recorded after ``averages``."""
        same_count = int(self.model.n_averaged) == len(averages)
        return same_count and (not averages or self.sha256(model_state(self.model.module)) == averages[-1].sha256)

    def final_state(self) -> dict[str, Tensor]:
        """Return a dict from name to a copy of each parameter and buffer of the averaged model.

        Parameters are those of the last update; ``update_bn`` may have changed the buffers since.

        Raises:
            InputError: the averaged parameters changed after the last update.
        """
        self._check_unchanged()
        return model_state(self.model.module)

    def sha256(self, state: Mapping[str, Tensor]) -> str:
        """Return the SHA-256 of the parameters in ``state``, a state of the averaged model; buffers are not included."""
        return state_sha256({name: state[name] for name in self._parameter_names})

    def _update_coefficient(
        self, old: Mapping[str, Tensor], new: Mapping[str, Tensor], weights: Mapping[str, Tensor]
    ) -> float:
        """Return the number kappa with new = old + kappa (weights - old) for all parameters; 1 for the first update, a copy.

        ``old`` and ``new`` are states of the averaged model before and after the update, ``weights`` is that of the model.

        Raises:
            InputError: no such number exists, or the first update is not a copy.
        """
        old, new, weights = ({name: state[name] for name in self._parameter_names} for state in (old, new, weights))
        if self.count:
            return fit_coefficient(old, new, weights, expected_coefficients=(self.coefficient, 1.0 / (self.count + 1)))
        for name, value in new.items():
            if not torch.equal(value, weights[name].to(value.dtype)):
                raise InputError(
                    f"the first averaged {name}, which differs from the {name} of the model",
                    expected="a copy, as AveragedModel makes it",
                    hint="use torch.optim.swa_utils.AveragedModel without changes",
                )
        return 1.0

    def _check_unchanged(self) -> None:
        """Check that every update was recorded, and that the averaged parameters have not changed since the last one.

        Raises:
            InputError: one of these does not hold.
        """
        updates = int(self.model.n_averaged)
        if updates != self.count:
            raise InputError(
                f"an averaged model after {updates} updates, {self.count} of them recorded",
                expected="every update through the recorder",
                hint="call recorder.average(averaged) instead of averaged.update_parameters(model)",
            )
        if self.state is not None:
            for name, parameter in self.model.module.named_parameters():
                if not torch.equal(parameter, self.state[name]):
                    raise InputError(
                        f"averaged parameter {name}, which has changed since the last average",
                        expected="averaged weights that change only in recorder.average",
                        hint="work on a copy of the averaged model",
                    )
