"""The numbers of an audit, from kernels, outputs and labels alone. Flips are not among its arguments."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelmem.auditing.document import ClassRow, Example, KernelFidelity, Memorization, Pusher
from kernelmem.auditing.verdict import AGREEMENT_REQUIRED, NULL_LEVEL
from kernelmem.kernel_machines.equivalence.fidelity import centered, fidelity, margin
from kernelmem.kernel_machines.model_selection.leave_one_out import LeaveOneOut, leave_one_out
from kernelmem.kernel_machines.model_selection.ridge_selection import choose_ridge

__all__ = ["Analysis", "analyze", "memorized_examples", "per_class"]


@dataclass(frozen=True)
class Analysis:
    """Both machines, and what they say of every row."""

    kernel: KernelFidelity
    memorization: Memorization
    label_machine: LeaveOneOut


def analyze(
    kernel: Tensor,  # (n, n)
    test_kernel: Tensor,  # (m, n)
    train_outputs: Tensor,  # (n, C)
    test_outputs: Tensor,  # (m, C)
    y_train: Tensor,  # (n,)
    y_test: Tensor,  # (m,)
    *,
    unseen: Tensor,  # (m,) bool: test rows that are no training rows
) -> Analysis:
    """Fit the label machine and the network machine on one kernel, and score every row.

    With A = (K + λI)⁻¹, α = A·targets:

    - label machine (targets one-hot − 1/C): score_i = h_ii (y_i − f_{−i}(x_i)) in the label column, and the left-out
      margin: what the learning problem makes any such learner memorize.
    - network machine (targets: the network's centered outputs): network_i = margin_net(x_i) − margin_{−i}(x_i), with the
      margin that the machine predicts without row i: what this network memorized. The null is the same difference on
      test rows.

    Both ridges minimize the leave-one-out squared error of their own targets.
    """
    C = train_outputs.shape[1]
    one_hot = torch.nn.functional.one_hot(y_train, C).to(torch.float64) - 1.0 / C
    network_targets = centered(train_outputs.to(torch.float64))
    label_choice = choose_ridge(kernel, one_hot)
    network_choice = choose_ridge(kernel, network_targets)
    label_machine = leave_one_out(kernel, one_hot, label_choice.ridge)
    network_machine = leave_one_out(kernel, network_targets, network_choice.ridge)

    machine_test = network_machine.predict(test_kernel)
    label_test = label_machine.predict(test_kernel)
    net = fidelity(machine_test, test_outputs.to(torch.float64))
    network = margin(network_targets, y_train) - margin(network_machine.predictions, y_train)
    null = margin(centered(test_outputs.to(torch.float64)), y_test) - margin(machine_test, y_test)

    return Analysis(
        KernelFidelity(
            agreement=net.agreement,
            agreement_se=net.agreement_se,
            agreement_required=AGREEMENT_REQUIRED,
            relative_error=net.relative_error,
            label_machine_agreement=fidelity(label_test, test_outputs.to(torch.float64)).agreement,
            label_machine_test_accuracy=_accuracy(label_test, y_test),
            network_machine_test_accuracy=_accuracy(machine_test, y_test),
            ridge=float(label_choice.ridge),
            network_ridge=float(network_choice.ridge),
            label_machine_loo_error=_mean_square(one_hot - label_machine.predictions),
            network_machine_loo_error=_mean_square(network_targets - network_machine.predictions),
        ),
        _memorization(label_machine, network, null, unseen),
        label_machine,
    )


def _memorization(machine: LeaveOneOut, network: Tensor, null: Tensor, unseen: Tensor) -> Memorization:
    """Hold the network statistic against its null.

    The threshold is an order statistic of the null (the smallest value with at least 99 % of the null at or below it). If
    training and test rows were exchangeable, the number of training rows above the k-th smallest of m null values would
    be beta-binomial(n, m − k + 1, k): the p-value of the count is exact, whatever the distribution.
    """
    from scipy import stats  # here, because it costs `import kernelmem` half a second

    values = np.sort(null[unseen].cpu().numpy())
    m, n = len(values), len(network)
    rank = int(np.ceil(NULL_LEVEL * (m - 1))) + 1  # 1-based; as numpy.quantile(..., method="higher")
    threshold = float(values[rank - 1])
    statistic = network.cpu().numpy()
    order = np.argsort(-statistic, kind="stable")
    memorized = [int(i) for i in order if statistic[i] > threshold]
    law = stats.betabinom(n, m - rank + 1, rank)
    spread = float(values.std(ddof=1)) if m > 1 else 0.0
    return Memorization(
        score=_floats(machine.memorization),
        margin=_floats(machine.margin),
        network=_floats(network),
        null=_floats(null),
        vote=tuple(int(k) for k in machine.predictions.argmax(1)),
        threshold=threshold,
        memorized=tuple(memorized),
        expected_by_chance=float(law.mean()),
        p_value=float(min(1.0, law.sf(len(memorized) - 1))) if memorized else 1.0,
        n_null=m,
        null_mean=float(values.mean()),
        null_se=spread / m**0.5,
        null_sd=spread,
    )


def memorized_examples(
    analysis: Analysis,
    kernel: Tensor,
    y_train: Tensor,
    flipped: Tensor | None,
    *,
    count: int,
    pushers: int = 3,
) -> tuple[Example, ...]:
    """Describe the ``count`` training rows with the largest network statistic, and the rows that push them most.

    The push of row j on row i is exact: the margin between i's label and the vote (or the strongest other class) with j
    in the training set of the label machine, minus the same without it.
    """
    found = analysis.memorization
    chosen = sorted(range(len(found.network)), key=lambda i: (-found.network[i], i))[:count]
    examples = []
    for i in chosen:
        label = int(y_train[i])
        predictions = analysis.label_machine.predictions[i].clone()
        predictions[label] = float("-inf")
        rival = int(predictions.argmax())
        change = analysis.label_machine.influence(kernel[i : i + 1])[0]  # (n, C)
        push = change[:, label] - change[:, rival]
        push[i] = 0.0
        strongest = torch.argsort(push.abs(), descending=True, stable=True)[: min(pushers, len(push) - 1)]
        examples.append(
            Example(
                index=i,
                label=label,
                vote=found.vote[i],
                score=found.score[i],
                margin=found.margin[i],
                network=found.network[i],
                flipped=None if flipped is None else bool(flipped[i]),
                pushers=tuple(Pusher(int(j), int(y_train[j]), float(push[j])) for j in strongest),
            )
        )
    return tuple(examples)


def per_class(
    found: Memorization, y_train: Tensor, y_test: Tensor, train_outputs: Tensor, test_outputs: Tensor
) -> tuple[ClassRow, ...]:
    """Summarize every class."""
    rows = []
    memorized = torch.zeros(len(y_train), dtype=torch.bool)
    memorized[list(found.memorized)] = True
    score, vote = torch.tensor(found.score), torch.tensor(found.vote)
    for label in range(train_outputs.shape[1]):
        train, test = y_train == label, y_test == label
        rows.append(
            ClassRow(
                label=label,
                name=str(label),
                n_train=int(train.sum()),
                n_test=int(test.sum()),
                train_accuracy=_accuracy(train_outputs[train], y_train[train]) if train.any() else None,
                test_accuracy=_accuracy(test_outputs[test], y_test[test]) if test.any() else None,
                mean_score=float(score[train].mean()) if train.any() else None,
                n_memorized=int(memorized[train].sum()),
                disagreeing=int((vote[train] != label).sum()),
            )
        )
    return tuple(rows)


def _accuracy(outputs: Tensor, labels: Tensor) -> float:
    return float((outputs.argmax(1) == labels).double().mean())


def _mean_square(residual: Tensor) -> float:
    return float(residual.square().sum(1).mean())


def _floats(values: Tensor) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
