"""Predicted outputs of models trained on subsets: sums of attributions, or refits of a kernel machine."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from kernelmem.core.checks import (
    ArrayLike,
    as_labels,
    as_number,
    as_square_kernel,
    as_tensor,
    check_callable,
    check_choice,
    check_instance,
)
from kernelmem.core.errors import InputError
from kernelmem.kernel_machines import LeaveOneOut
from kernelmem.kernel_machines.targets import as_targets
from kernelmem.memorization.output_statistics import STATISTICS, Statistic, label_statistic
from kernelmem.trajectory import Influence, Ledger

SubsetPredictor: TypeAlias = Callable[[Tensor], Tensor]
"""Maps masks (S, n) bool to predicted statistics (S, t) of t rows after training on each subset."""

Attribution: TypeAlias = ArrayLike | Influence | Ledger | SubsetPredictor
"""(t, n) numbers τ, positive if training on row i raises the statistic of row z; a result of km.influence or km.ledger for
one function of each row; or a function from masks to predictions."""


def as_predictors(attribution: Attribution | Mapping[str, Attribution], t: int, n: int) -> dict[str, SubsetPredictor]:
    """Return one or several attributions of t rows to n training rows as functions of masks, by name.

    Raises:
        InputError: an attribution of another shape, with NaN, or of several functions for each row.
    """
    if not isinstance(attribution, Mapping):
        attribution = {"attribution": attribution}
    if not attribution or not all(isinstance(name, str) for name in attribution):
        raise InputError(
            f"attributions named {', '.join(map(repr, attribution)) or 'by nothing'}"[:120],
            expected="at least one attribution, with names that are text",
            hint='pass an array (t, n), or {"influence": array, ...}',
        )
    return {name: _as_predictor(value, name, t, n) for name, value in attribution.items()}


def as_attribution(value: ArrayLike | Influence | Ledger, name: str, t: int | None, n: int) -> Tensor:
    """Return an attribution as a tensor (t, n) in float64; ``t`` None: any number of rows.

    Raises:
        InputError: another shape, NaN, or several functions for each row.
    """
    if isinstance(value, Influence | Ledger):
        tensor = value.influence if isinstance(value, Influence) else value.contributions
        if tensor.shape[2] != 1:
            raise InputError(
                f"{name} of {tensor.shape[2]} outputs of each row",
                expected="one function of each row",
                hint='compute it with target="margin" and labels=, the statistic that it is compared with',
            )
        tensor = tensor[:, :, 0]
        if tensor.shape[1] < n:  # rows after the last one that the run used have no effect
            tensor = torch.nn.functional.pad(tensor, (0, n - tensor.shape[1]))
    else:
        tensor = as_tensor(value, name, dtype=torch.float64).cpu()
    if tensor.ndim != 2 or tensor.shape[1] != n or (t is not None and len(tensor) != t) or len(tensor) == 0:
        raise InputError(
            f"{name} of shape {tuple(tensor.shape)}",
            expected=f"({'t' if t is None else t}, {n}): explained rows times training rows",
            hint="put the explained rows first, in the order of the ensemble's rows; transpose if needed",
        )
    return tensor


def _as_predictor(value: Attribution, name: str, t: int, n: int) -> SubsetPredictor:
    if not callable(value):
        tau = as_attribution(value, name, t, n)
        tau = tau / tau.abs().max().clamp_min(1e-300)  # sums of numbers near 1e308 overflow; ranks need no scale
        return lambda masks: masks.to(torch.float64) @ tau.T

    check_callable(value, name, ("masks",))

    def predict(masks: Tensor) -> Tensor:
        prediction = as_tensor(value(masks.clone()), f"predictions of {name}", dtype=torch.float64).cpu()
        if prediction.shape != (len(masks), t):
            raise InputError(
                f"predictions of {name} of shape {tuple(prediction.shape)} for masks {tuple(masks.shape)}",
                expected=f"({len(masks)}, {t}): subsets times explained rows",
                hint="return one number for each subset and row",
            )
        return prediction

    return predict


def leave_one_out_attribution(loo: LeaveOneOut, K_test: ArrayLike, y_test: ArrayLike) -> Tensor:
    """Return the effect of each training row on the margins of test rows of a kernel machine, (t, n), to first order.

    τ_i(z) = Δ_y − Δ_k with Δ = f(z) − f₋ᵢ(z), exact for each output, and k the largest other output of f(z). For two outputs
    the effect on the margin is exact too. Sums over rows ignore that rows act together: see :func:`kernel_refit`.

    Args:
        loo: result of ``km.leave_one_out`` on labels.
        K_test: (t, n) kernel of test rows with training rows.
        y_test: (t,) labels.

    Raises:
        InputError: shapes that do not fit, labels out of range, or a fit with one output.

    Cost: that of ``loo.influence``, O(t n² + t n C).
    """
    check_instance(loo, "loo", LeaveOneOut, hint="pass the result of km.leave_one_out")
    effects, outputs = loo.influence(K_test).cpu(), loo.predict(K_test).cpu()
    t, C = outputs.shape
    if C < 2:
        raise InputError(
            "a fit with one output", expected="labels of at least two classes", hint="pass labels to km.leave_one_out"
        )
    labels = as_labels(y_test, "y_test", n=t, n_classes=C)
    others = outputs.scatter(1, labels[:, None], -torch.inf).argmax(1)
    label_effects, other_effects = (
        effects.gather(2, column[:, None, None].expand(-1, effects.shape[1], 1))[:, :, 0] for column in (labels, others)
    )
    return label_effects - other_effects


def kernel_refit(
    kernel: ArrayLike,
    y: ArrayLike,
    K_test: ArrayLike,
    y_test: ArrayLike,
    ridge: float,
    *,
    statistic: Statistic = "margin",
) -> SubsetPredictor:
    r"""Return the function that fits kernel ridge regression to each subset S and predicts a statistic of the test rows.

    f_S(z) = k(z, X_S) (K_SS + ridge I)⁻¹ y_S, the outputs of ``km.leave_one_out`` with all rows outside S left out. The
    statistic of f_S at the test labels is nonlinear in S, as that of a retrained network.

    Args:
        kernel: (n, n) of the training rows, for example ``km.ntk(model, x)`` of the untrained network.
        y: (n,) labels, centered to one-hot − 1/C, or (n, C) real targets.
        K_test: (t, n) kernel of test rows with training rows.
        y_test: (t,) labels, or (t, C) real targets (statistic "log_likelihood").
        ridge: > 0, added to the diagonal, in units of the kernel (``km.choose_ridge``).
        statistic: of the outputs (:func:`label_statistic`).

    Returns:
        a function from masks (S, n) to predictions (S, t), for :func:`lds`.

    Raises:
        InputError: shapes that do not fit, a ridge that is not positive, unknown statistic.

    Cost: |S|³/3 + |S| t C operations per subset.
    """
    K = as_square_kernel(kernel).cpu()
    n = len(K)
    check_choice(statistic, "statistic", STATISTICS)
    ridge = as_number(ridge, "ridge", exclusive=True)
    targets, classes = as_targets(y, n, K.device)
    K_rows = as_attribution(K_test, "K_test", None, n)
    if classes is None:
        test_labels = as_targets(y_test, len(K_rows), K.device)[0]
    else:
        test_labels = as_labels(y_test, "y_test", n=len(K_rows), n_classes=targets.shape[1])

    def predict(masks: Tensor) -> Tensor:
        predictions = []
        for mask in masks:
            inside = K[mask][:, mask]
            inside.diagonal().add_(ridge)
            alpha = torch.cholesky_solve(targets[mask], torch.linalg.cholesky(inside))
            predictions.append(label_statistic(K_rows[:, mask] @ alpha, test_labels, statistic))
        return torch.stack(predictions)

    return predict
