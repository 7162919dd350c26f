"""Statistics of an audit, from kernels, outputs and labels alone. Known flips are not among the arguments."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelmem.auditing.document import ClassRow, Example, InfluentialRow, KernelFidelity, Memorization
from kernelmem.auditing.verdict import AGREEMENT_REQUIRED, NULL_LEVEL
from kernelmem.kernel_machines.equivalence.fidelity import centered, fidelity, margin
from kernelmem.kernel_machines.model_selection.leave_one_out import LeaveOneOut, leave_one_out
from kernelmem.kernel_machines.model_selection.ridge_selection import choose_ridge

ROUNDING = 1e-7  # of a regression in float64 with a condition number of up to 1e8


@dataclass(frozen=True)
class Analysis:
    """Result of :func:`analyze`.

    ``fidelity`` compares both regressions with the network on test rows, ``memorization`` holds the statistics of every
    row, and ``label_regression`` is the kernel ridge regression fitted to the labels, with its leave-one-out
    predictions.
    """

    fidelity: KernelFidelity
    memorization: Memorization
    label_regression: LeaveOneOut


def analyze(
    kernel: Tensor,  # (n, n)
    test_kernel: Tensor,  # (m, n)
    train_outputs: Tensor,  # (n, C)
    test_outputs: Tensor,  # (m, C)
    y_train: Tensor,  # (n,)
    y_test: Tensor,  # (m,)
    *,
    unseen: Tensor,  # (m,) bool: test rows that are not training rows
) -> Analysis:
    """Fit label regression and NTK surrogate on one kernel, and compute the statistics of every row.

    Both are kernel ridge regressions with the kernel K (n, n) of n training rows; m is the number of test rows and C the
    number of classes. The margin of a row is the output of its label minus the largest other output.

    - The label regression g has the targets one-hot − 1/C. For row i it gives label_memorization_i = g(x_i) − g_{−i}(x_i)
      in the column of the label, where g_{−i} is fitted without row i, and the margin of g_{−i}(x_i). They describe the
      learning problem: what any learner with this kernel memorizes.
    - The NTK surrogate has the centered outputs of the network as targets. It gives network_memorization_i, the margin of
      the network at x_i minus the margin that the surrogate fitted without row i predicts. It describes this network.
      The null is the same difference on test rows.

    Both ridges minimize the leave-one-out squared error of their own targets.
    """
    C = train_outputs.shape[1]
    label_targets = torch.nn.functional.one_hot(y_train, C).to(torch.float64) - 1.0 / C
    network_targets = centered(train_outputs.to(torch.float64))
    test_outputs = test_outputs.to(torch.float64)
    label_ridge = choose_ridge(kernel, label_targets).ridge
    surrogate_ridge = choose_ridge(kernel, network_targets).ridge
    label_regression = leave_one_out(kernel, label_targets, label_ridge)
    surrogate = leave_one_out(kernel, network_targets, surrogate_ridge)

    surrogate_test_outputs = surrogate.predict(test_kernel)
    label_test_outputs = label_regression.predict(test_kernel)
    network_fidelity = fidelity(surrogate_test_outputs, test_outputs)
    scale = float(torch.cat([network_targets, test_outputs]).abs().max())
    network_memorization = _margin_difference(network_targets, surrogate.predictions, y_train, scale)
    null_memorization = _margin_difference(centered(test_outputs), surrogate_test_outputs, y_test, scale)
    return Analysis(
        KernelFidelity(
            agreement=network_fidelity.agreement,
            agreement_se=network_fidelity.agreement_se,
            agreement_required=AGREEMENT_REQUIRED,
            relative_error=network_fidelity.relative_error,
            label_regression_agreement=fidelity(label_test_outputs, test_outputs).agreement,
            label_regression_test_accuracy=accuracy(label_test_outputs, y_test),
            surrogate_test_accuracy=accuracy(surrogate_test_outputs, y_test),
            label_regression_ridge=float(label_ridge),
            surrogate_ridge=float(surrogate_ridge),
            label_regression_loo_error=_mean_square(label_targets - label_regression.predictions),
            surrogate_loo_error=_mean_square(network_targets - surrogate.predictions),
        ),
        _memorization_statistics(label_regression, network_memorization, null_memorization, unseen),
        label_regression,
    )


def _margin_difference(network: Tensor, surrogate: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Return the margin of the network minus that of the surrogate, (n,), for outputs (n, C) and labels (n,).

    Differences within the rounding of the regression, relative to the largest output ``scale``, are 0: a network that is
    linear in its parameters is its own surrogate, and the signs of rounding errors are no finding.
    """
    difference = margin(network, labels) - margin(surrogate, labels)
    return torch.where(difference.abs() <= ROUNDING * scale, 0.0, difference)


def _memorization_statistics(
    label_regression: LeaveOneOut, network_memorization: Tensor, null_memorization: Tensor, unseen: Tensor
) -> Memorization:
    """Compare the memorization of training rows by the network with that of unseen test rows (the null).

    ``network_memorization`` has shape (n,) for n training rows, ``null_memorization`` (m,) for m test rows, and
    ``unseen`` (m,) is True for the test rows that are not training rows. Only these enter the threshold, the smallest
    null value with at least 99 % of the null at or below it.

    If training and test rows were exchangeable, the number of training rows above the k-th smallest of u unseen null
    values would be beta-binomial(n, u − k + 1, k). The p-value of the count is therefore exact, whatever the
    distribution of the values.
    """
    from scipy import stats  # here, because it adds half a second to `import kernelmem`

    null_sorted = np.sort(null_memorization[unseen].cpu().numpy())
    m, n = len(null_sorted), len(network_memorization)
    threshold_rank = int(np.ceil(NULL_LEVEL * (m - 1))) + 1  # from 1, as in numpy.quantile(..., method="higher")
    threshold = float(null_sorted[threshold_rank - 1])
    memorization = network_memorization.cpu().numpy()
    descending = np.argsort(-memorization, kind="stable")
    memorized = [int(i) for i in descending if memorization[i] > threshold]
    chance_count = stats.betabinom(n, m - threshold_rank + 1, threshold_rank)
    null_sd = float(null_sorted.std(ddof=1)) if m > 1 else 0.0
    return Memorization(
        label_memorization=_float_tuple(label_regression.memorization),
        loo_margin=_float_tuple(label_regression.margin),
        network_memorization=_float_tuple(network_memorization),
        null=_float_tuple(null_memorization),
        loo_prediction=tuple(int(k) for k in label_regression.predictions.argmax(1)),
        threshold=threshold,
        memorized=tuple(memorized),
        expected_by_chance=float(chance_count.mean()),
        p_value=float(min(1.0, chance_count.sf(len(memorized) - 1))) if memorized else 1.0,
        n_null=m,
        null_mean=float(null_sorted.mean()),
        null_se=null_sd / m**0.5,
        null_sd=null_sd,
    )


def memorized_examples(
    analysis: Analysis, kernel: Tensor, y_train: Tensor, flipped: Tensor | None, *, count: int, n_influential: int = 3
) -> tuple[Example, ...]:
    """Return one Example for each of the ``count`` training rows that the network memorized most.

    Each Example lists the ``n_influential`` other rows with the largest influence on its row. ``kernel`` is (n, n) for n
    training rows, and ``flipped`` (n,) is True where a label is known to be wrong (None: unknown).

    The influence of row j on row i is exact: the margin between the label of row i and the strongest other class with row j
    in the training set of the label regression, minus the margin without row j.
    """
    memorization, label_regression = analysis.memorization, analysis.label_regression
    network_memorization = memorization.network_memorization
    most_memorized = sorted(range(len(network_memorization)), key=lambda row: (-network_memorization[row], row))[:count]
    examples = []
    for row in most_memorized:
        label = int(y_train[row])
        other_outputs = label_regression.predictions[row].clone()
        other_outputs[label] = float("-inf")
        rival = int(other_outputs.argmax())
        output_change = label_regression.influence(kernel[row : row + 1])[0]  # (n, C)
        influence = output_change[:, label] - output_change[:, rival]
        influence[row] = 0.0
        largest = torch.argsort(influence.abs(), descending=True, stable=True)[: min(n_influential, len(influence) - 1)]
        examples.append(
            Example(
                index=row,
                label=label,
                loo_prediction=memorization.loo_prediction[row],
                label_memorization=memorization.label_memorization[row],
                loo_margin=memorization.loo_margin[row],
                network_memorization=network_memorization[row],
                flipped=None if flipped is None else bool(flipped[row]),
                influential=tuple(
                    InfluentialRow(int(source), int(y_train[source]), float(influence[source])) for source in largest
                ),
            )
        )
    return tuple(examples)


def per_class(
    memorization: Memorization, y_train: Tensor, y_test: Tensor, train_outputs: Tensor, test_outputs: Tensor
) -> tuple[ClassRow, ...]:
    """Return one ClassRow per class with the numbers of rows, the accuracies and the memorization of that class.

    ``y_train`` (n,) and ``y_test`` (m,) are labels, ``train_outputs`` (n, C) and ``test_outputs`` (m, C) are the
    outputs of the network for C classes. A mean over a class without rows is None.
    """
    rows = []
    memorized = torch.zeros(len(y_train), dtype=torch.bool)
    memorized[list(memorization.memorized)] = True
    label_memorization = torch.tensor(memorization.label_memorization, dtype=torch.float64)
    loo_prediction = torch.tensor(memorization.loo_prediction)
    for label in range(train_outputs.shape[1]):
        train, test = y_train == label, y_test == label
        rows.append(
            ClassRow(
                label=label,
                name=str(label),
                n_train=int(train.sum()),
                n_test=int(test.sum()),
                train_accuracy=accuracy(train_outputs[train], y_train[train]) if train.any() else None,
                test_accuracy=accuracy(test_outputs[test], y_test[test]) if test.any() else None,
                mean_label_memorization=float(label_memorization[train].mean()) if train.any() else None,
                n_memorized=int(memorized[train].sum()),
                n_contradicted=int((loo_prediction[train] != label).sum()),
            )
        )
    return tuple(rows)


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Return the share of rows whose largest output is at their label; outputs (n, C), labels (n,)."""
    return float((outputs.argmax(1) == labels).double().mean())


def _mean_square(residual: Tensor) -> float:
    return float(residual.square().sum(1).mean())


def _float_tuple(values: Tensor) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
