"""Memorization and margin of the leave-one-out fits of a kernel machine, as scores."""

from kernelmem.core.checks import check_instance
from kernelmem.kernel_machines import LeaveOneOut
from kernelmem.memorization.score import Score

SOURCE = "Allen 1974 (closed form); Feldman 2020 (memorization); Bachmann, Hofmann, Lucchi 2022 (tangent kernels)"


def leave_one_out_memorization(fit: LeaveOneOut) -> Score:
    """Return the prediction of each row's label by the kernel machine with the row, minus that without it.

    It is exact for kernel ridge regression on this training set (:attr:`LeaveOneOut.memorization`).

    Raises:
        InputError: not a result of ``km.leave_one_out``, or one of real targets.

    >>> import kernelmem as km, torch
    >>> leave_one_out_memorization(km.leave_one_out(torch.eye(3), [0, 1, 1], ridge=1.0)).values.round(decimals=6).tolist()
    [0.25, 0.25, 0.25]
    """
    check_instance(fit, "fit", LeaveOneOut, hint="pass km.leave_one_out(kernel, y, ridge)")
    return Score(
        fit.memorization.cpu(),
        None,
        "kernel leave-one-out memorization",
        "model",
        1,
        "prediction of the label with the row minus that without it, by kernel ridge regression on one-hot labels",
        SOURCE,
    )


def leave_one_out_margin(fit: LeaveOneOut) -> Score:
    """Return minus the leave-one-out margin f₋ᵢ(x_i)_y − max_{k≠y} f₋ᵢ(x_i)_k: positive if the other rows contradict the label.

    Raises:
        InputError: not a result of ``km.leave_one_out``, or one of real targets.
    """
    check_instance(fit, "fit", LeaveOneOut, hint="pass km.leave_one_out(kernel, y, ridge)")
    return Score(
        -fit.margin.cpu(),
        None,
        "kernel leave-one-out margin (minus)",
        "model",
        1,
        "largest prediction of another class minus that of the label, by kernel ridge regression without the row",
        SOURCE,
    )
