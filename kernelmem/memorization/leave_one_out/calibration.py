"""Calibrated out-of-sample probabilities from leave-one-out predictions."""

import numpy as np
import torch

from kernelmem.core.checks import ArrayLike, as_labels, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.kernel_machines import LeaveOneOut
from kernelmem.statistics import calibrated_probabilities, fit_calibration
from kernelmem.training.losses import class_outputs


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
    probabilities = calibrated_probabilities(outputs, temperature, floor)
    return (probabilities / probabilities.sum(1, keepdim=True)).numpy()
