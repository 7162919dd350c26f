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


@dataclass(frozen=True)
class Analysis:
    """Fidelity of both regressions, statistics of every row, and the label regression itself."""

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

    With A = (K + λI)⁻¹, α = A·targets:

    - label regression (targets one-hot − 1/C): label_memorization_i = h_ii (y_i − f_{−i}(x_i)) in the label's column, and
      the leave-one-out margin. They describe the learning problem: what any learner with this kernel memorizes.
    - NTK surrogate (targets: centered outputs of the network): network_memorization_i = margin_net(x_i) − margin_{−i}(x_i),
      with the margin that the surrogate predicts without row i. It describes this network. The null is the same
      difference on test rows.

    Both ridges minimize the leave-one-out squared error of their own targets.
    """
    C = train_outputs.shape[1]
    one_hot = torch.nn.functional.one_hot(y_train, C).to(torch.float64) - 1.0 / C
    network_targets = centered(train_outputs.to(torch.float64))
    test_outputs = test_outputs.to(torch.float64)
    label_ridge = choose_ridge(kernel, one_hot).ridge
    surrogate_ridge = choose_ridge(kernel, network_targets).ridge
    label_regression = leave_one_out(kernel, one_hot, label_ridge)
    surrogate = leave_one_out(kernel, network_targets, surrogate_ridge)

    surrogate_test = surrogate.predict(test_kernel)
    label_test = label_regression.predict(test_kernel)
    network_fidelity = fidelity(surrogate_test, test_outputs)
    network = margin(network_targets, y_train) - margin(surrogate.predictions, y_train)
    null = margin(centered(test_outputs), y_test) - margin(surrogate_test, y_test)
    return Analysis(
        KernelFidelity(
            agreement=network_fidelity.agreement,
            agreement_se=network_fidelity.agreement_se,
            agreement_required=AGREEMENT_REQUIRED,
            relative_error=network_fidelity.relative_error,
            label_regression_agreement=fidelity(label_test, test_outputs).agreement,
            label_regression_test_accuracy=accuracy(label_test, y_test),
            surrogate_test_accuracy=accuracy(surrogate_test, y_test),
            label_regression_ridge=float(label_ridge),
            surrogate_ridge=float(surrogate_ridge),
            label_regression_loo_error=_mean_square(one_hot - label_regression.predictions),
            surrogate_loo_error=_mean_square(network_targets - surrogate.predictions),
        ),
        _memorization(label_regression, network, null, unseen),
        label_regression,
    )


def _memorization(label_regression: LeaveOneOut, network: Tensor, null: Tensor, unseen: Tensor) -> Memorization:
    """Compare the network's memorization with its null.

    The threshold is an order statistic of the null (the smallest value with at least 99 % of the null at or below it). If
    training and test rows were exchangeable, the number of training rows above the k-th smallest of m null values would
    be beta-binomial(n, m − k + 1, k): the p-value of the count is exact, whatever the distribution.
    """
    from scipy import stats  # here, because it adds half a second to `import kernelmem`

    null_sorted = np.sort(null[unseen].cpu().numpy())
    m, n = len(null_sorted), len(network)
    rank = int(np.ceil(NULL_LEVEL * (m - 1))) + 1  # 1-based; as numpy.quantile(..., method="higher")
    threshold = float(null_sorted[rank - 1])
    statistic = network.cpu().numpy()
    order = np.argsort(-statistic, kind="stable")
    memorized = [int(i) for i in order if statistic[i] > threshold]
    count_law = stats.betabinom(n, m - rank + 1, rank)
    null_sd = float(null_sorted.std(ddof=1)) if m > 1 else 0.0
    return Memorization(
        label_memorization=_floats(label_regression.memorization),
        loo_margin=_floats(label_regression.margin),
        network_memorization=_floats(network),
        null=_floats(null),
        loo_prediction=tuple(int(k) for k in label_regression.predictions.argmax(1)),
        threshold=threshold,
        memorized=tuple(memorized),
        expected_by_chance=float(count_law.mean()),
        p_value=float(min(1.0, count_law.sf(len(memorized) - 1))) if memorized else 1.0,
        n_null=m,
        null_mean=float(null_sorted.mean()),
        null_se=null_sd / m**0.5,
        null_sd=null_sd,
    )


def memorized_examples(
    analysis: Analysis, kernel: Tensor, y_train: Tensor, flipped: Tensor | None, *, count: int, n_influential: int = 3
) -> tuple[Example, ...]:
    """Describe the ``count`` training rows that the network memorized most, and the rows with the largest influence on them.

    The influence of row j on row i is exact: the margin between i's label and the strongest other class with j in the
    training set of the label regression, minus the same without j.
    """
    memorization, label_regression = analysis.memorization, analysis.label_regression
    network = memorization.network_memorization
    chosen = sorted(range(len(network)), key=lambda i: (-network[i], i))[:count]
    examples = []
    for i in chosen:
        label = int(y_train[i])
        others = label_regression.predictions[i].clone()
        others[label] = float("-inf")
        rival = int(others.argmax())
        change = label_regression.influence(kernel[i : i + 1])[0]  # (n, C)
        influence = change[:, label] - change[:, rival]
        influence[i] = 0.0
        largest = torch.argsort(influence.abs(), descending=True, stable=True)[: min(n_influential, len(influence) - 1)]
        examples.append(
            Example(
                index=i,
                label=label,
                loo_prediction=memorization.loo_prediction[i],
                label_memorization=memorization.label_memorization[i],
                loo_margin=memorization.loo_margin[i],
                network_memorization=network[i],
                flipped=None if flipped is None else bool(flipped[i]),
                influential=tuple(InfluentialRow(int(j), int(y_train[j]), float(influence[j])) for j in largest),
            )
        )
    return tuple(examples)


def per_class(
    memorization: Memorization, y_train: Tensor, y_test: Tensor, train_outputs: Tensor, test_outputs: Tensor
) -> tuple[ClassRow, ...]:
    """Summarize accuracy and memorization of every class."""
    rows = []
    memorized = torch.zeros(len(y_train), dtype=torch.bool)
    memorized[list(memorization.memorized)] = True
    label_memorization = torch.tensor(memorization.label_memorization)
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
    """Share of rows whose largest output is their label."""
    return float((outputs.argmax(1) == labels).double().mean())


def _mean_square(residual: Tensor) -> float:
    return float(residual.square().sum(1).mean())


def _floats(values: Tensor) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
