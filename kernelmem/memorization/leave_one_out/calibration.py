"""Calibrated out-of-sample probabilities from leave-one-out predictions."""

import math

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_labels, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.kernel_machines import LeaveOneOut
from kernelmem.training.losses import class_outputs

MAX_FLOOR, MIN_FLOOR = 0.999, 1e-6
LOG_TEMPERATURES = tuple(
    float(value) for value in np.linspace(math.log(1e-3), math.log(1e2), 12)
)  # relative to the spread
ENTRIES_PER_BLOCK = 2**20  # of probabilities at a time


def to_pred_probs(predictions: "LeaveOneOut | ArrayLike", labels: ArrayLike | None = None) -> np.ndarray:
    """Return class probabilities (n, C) in float64 for cleanlab and other tools that need out-of-sample predictions.

    ::

        p_c = (1 − ε) exp(f_c / τ) / Σ_k exp(f_k / τ) + ε / C

    f are leave-one-out predictions, so that no row has seen its own label. The temperature τ and the noise floor ε have the
    largest likelihood of the given labels; only these two numbers are fitted in sample. Every entry is at least 1e-6 / C, and
    rows sum to 1.

    ::

        fit = km.leave_one_out(kernel, y, km.choose_ridge(kernel, y).ridge)
        Datalab(data={"y": y}, label_name="y").find_issues(pred_probs=km.to_pred_probs(fit))

    Args:
        predictions: a result of ``km.leave_one_out`` on class labels, or (n, C) outputs of models that were not trained on the
            row (cross-validation, the "out" models of a shadow ensemble).
        labels: (n,) given labels; only with an array of outputs.

    Raises:
        InputError: leave-one-out of real targets, labels that are missing, superfluous or do not fit, NaN.

    Cost: about 30 evaluations of the likelihood, O(n C) each; memory O(n C).

    Source: Guo et al. 2017 (temperature).

    >>> import kernelmem as km
    >>> to_pred_probs(km.leave_one_out(np.eye(4) + 0.5, [0, 1, 1, 1], ridge=0.1)).round(2)[1].tolist()
    [0.25, 0.75]
    """
    if isinstance(predictions, LeaveOneOut):
        if predictions.labels is None or labels is not None:
            raise InputError(
                "labels in addition to leave-one-out predictions"
                if labels is not None
                else "leave-one-out of real targets",
                expected="km.leave_one_out(kernel, y, ridge) of class labels y, alone",
                hint="leave labels out" if labels is not None else "pass labels as whole numbers to km.leave_one_out",
            )
        outputs, classes = predictions.predictions.cpu(), predictions.labels.cpu()
    else:
        outputs = as_tensor(predictions, "predictions", dtype=torch.float64).cpu()
        if labels is None or outputs.ndim != 2 or 0 in outputs.shape:
            raise InputError(
                f"predictions of shape {tuple(outputs.shape)}" + (" without labels" if labels is None else ""),
                expected="(n, C) outputs and (n,) labels, or a result of km.leave_one_out",
                hint="pass the given labels as the second argument"
                if labels is None
                else "for one logit pass outputs[:, None]",
            )
        outputs = class_outputs(outputs)
        classes = as_labels(labels, "labels", n=len(outputs), n_classes=outputs.shape[1]).cpu()
    temperature, floor = fit_calibration(outputs, classes)
    probabilities = _probabilities(outputs, temperature, floor)
    return (probabilities / probabilities.sum(1, keepdim=True)).numpy()


def fit_calibration(outputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the temperature and the noise floor with the largest likelihood of the labels (n,) given outputs (n, C).

    The likelihood is concave in the floor, so that only the temperature is searched: on a grid, then between its neighbors.
    """
    from scipy.optimize import minimize_scalar  # slow to import

    n_classes = outputs.shape[1]
    spread = float((outputs - outputs.mean(1, keepdim=True)).square().mean().sqrt())
    if spread == 0:
        return 1.0, MIN_FLOOR

    def negative_log_likelihood(log_temperature: float) -> float:
        p = _label_probabilities(outputs, labels, spread * math.exp(log_temperature))
        floor = _best_floor(p, n_classes)
        return -float(((1 - floor) * p + floor / n_classes).log().mean())

    values = [negative_log_likelihood(log_temperature) for log_temperature in LOG_TEMPERATURES]
    best = int(np.argmin(values))
    low, high = LOG_TEMPERATURES[max(0, best - 1)], LOG_TEMPERATURES[min(len(values), best + 2) - 1]
    result = minimize_scalar(negative_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-5})
    log_temperature = float(result.x) if result.fun < values[best] else LOG_TEMPERATURES[best]  # pyright: ignore[reportAttributeAccessIssue]
    temperature = spread * math.exp(log_temperature)
    return temperature, _best_floor(_label_probabilities(outputs, labels, temperature), n_classes)


def _best_floor(p: Tensor, n_classes: int) -> float:
    """Return the floor ε in its range with the largest Σ log((1 − ε) p + ε / C), for probabilities p (n,)."""
    from scipy.optimize import brentq

    def slope(floor: float) -> float:
        return float(((1 / n_classes - p) / ((1 - floor) * p + floor / n_classes)).mean())

    if slope(MIN_FLOOR) <= 0:
        return MIN_FLOOR
    if slope(MAX_FLOOR) >= 0:
        return MAX_FLOOR
    return float(brentq(slope, MIN_FLOOR, MAX_FLOOR, xtol=1e-9))  # pyright: ignore[reportArgumentType]


def _label_probabilities(outputs: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the softmax of outputs / temperature at the labels, (n,), block by block of the rows."""
    block = max(1, ENTRIES_PER_BLOCK // outputs.shape[1])
    parts = []
    for start in range(0, len(outputs), block):
        z = outputs[start : start + block] / temperature
        parts.append((z.gather(1, labels[start : start + block, None])[:, 0] - z.logsumexp(1)).exp())
    return torch.cat(parts)


def _probabilities(outputs: Tensor, temperature: float, floor: float) -> Tensor:
    return (1 - floor) * (outputs / temperature).softmax(1) + floor / outputs.shape[1]
