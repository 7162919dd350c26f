"""Scores of every row from the network's own kernel, outputs and labels. Known flips are not among the arguments."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelmem.auditing.data_checks import AuditKernel, NearDuplicates, kernel_entries, kernel_of_rows
from kernelmem.auditing.schema import KernelFidelity
from kernelmem.core.errors import InputError
from kernelmem.core.options import MEMORY
from kernelmem.kernel_machines.equivalence.fidelity import centered, fidelity, margin
from kernelmem.kernel_machines.model_selection.leave_one_out import LeaveOneOut, leave_one_out
from kernelmem.kernel_machines.model_selection.ridge_selection import choose_ridges

AGREEMENT_REQUIRED = 0.9  # below it a statement about the regressions says nothing about the network
ROUNDING = 1e-7  # of a regression in float64 with a condition number of up to 1e8
INFLUENCE_SIZE = 2**24  # numbers per batch of influences


@dataclass(frozen=True)
class KernelScores:
    """Scores of N rows, training rows first, each predicted without itself and without its near-duplicates.

    Attributes:
        n_train: number n of training rows.
        labels: (N,) given classes.
        near: groups of near-duplicates.
        label_regression: kernel ridge regression of the labels of the R representatives, with leave-one-out predictions.
        predictions: (N, C) leave-one-out predictions of the label regression, centered one-hot scale.
        loo_margin: (N,) their margins at the label.
        label_memorization: (N,) prediction at the label with the row (or its representative) minus without it.
        surrogate_difference: (N,) margin of the network minus leave-one-out margin of its NTK surrogate.
        network_correct: (N,) True if the network gives the label.
        contradicted: (N,) True if the leave-one-out prediction is another class.
        fidelity: agreement of both regressions with the network on test rows.
    """

    n_train: int
    labels: Tensor
    near: NearDuplicates
    label_regression: LeaveOneOut
    predictions: Tensor
    loo_margin: Tensor
    label_memorization: Tensor
    surrogate_difference: Tensor
    network_correct: Tensor
    contradicted: Tensor
    fidelity: KernelFidelity

    @property
    def flagged(self) -> Tensor:
        """(N,) True if the network gives the label although the other rows contradict it."""
        return self.network_correct & self.contradicted

    @property
    def control(self) -> Tensor:
        """(u,) positions, in 0..N−1, of the test rows that represent a group of near-duplicates without training rows."""
        return control_positions(self.near, self.n_train)


def kernel_scores(
    kernel: AuditKernel,  # (N, N)
    outputs: Tensor,  # (N, C)
    labels: Tensor,  # (N,)
    n_train: int,
    near: NearDuplicates,
    *,
    memory: int | str = MEMORY,
) -> KernelScores:
    """Fit label regression and NTK surrogate to training and test rows together, and predict each row without itself.

    Both are kernel ridge regressions with the kernel K (N, N) of n training and N − n test rows, fitted to one row of each
    group of near-duplicates, with ridges that minimize their leave-one-out squared errors. Training and test rows are
    treated alike: if the network saw neither, their scores are exchangeable. The targets of the label regression are
    one-hot − 1/C, those of the surrogate the centered outputs of the network.

    A row that does not represent its group is predicted without the representative.

    ``memory`` limits the work with a kernel that is in a file.

    Cost: O(R³) for R groups, plus O(q R²) for q other rows.
    """
    N, C = outputs.shape
    rows = near.representative
    targets = torch.nn.functional.one_hot(labels, C).to(torch.float64) - 1.0 / C
    network = centered(outputs.to(torch.float64))
    with kernel_of_rows(kernel, rows) as fitted_kernel:
        ridges = choose_ridges(fitted_kernel, [targets[rows], network[rows]], memory=memory)
        label_ridge, surrogate_ridge = (float(choice.ridge) for choice in ridges)
        # Each regression holds a factor of the kernel: that of the surrogate is freed before the other is computed.
        surrogate = leave_one_out(fitted_kernel, network[rows], surrogate_ridge, memory=memory)
        surrogate_loo_error = _mean_square(surrogate.errors)
        surrogate_predictions, _ = _predictions(surrogate, kernel, near)
        del surrogate
        label_regression = leave_one_out(fitted_kernel, targets[rows], label_ridge, memory=memory)
    predictions, with_row = _predictions(label_regression, kernel, near)
    difference = margin(network, labels) - margin(surrogate_predictions, labels)
    unresolved = ROUNDING * float(network.abs().max())  # a network that is linear in its weights is its own surrogate
    column = labels[:, None]
    test = control_positions(near, n_train)
    if len(test) < 2:
        raise InputError(
            f"{N - n_train} test rows, {len(test)} of which form groups without near-duplicates in the training set",
            expected="at least two test rows that the network has not seen, also not as near-copies",
            hint="hold out other rows, or pass a larger near_duplicate_cosine",
        )
    surrogate_fidelity = fidelity(surrogate_predictions[test], outputs[test])
    return KernelScores(
        n_train=n_train,
        labels=labels,
        near=near,
        label_regression=label_regression,
        predictions=predictions,
        loo_margin=margin(predictions, labels),
        label_memorization=(with_row - predictions).gather(1, column)[:, 0],
        surrogate_difference=torch.where(difference.abs() <= unresolved, 0.0, difference),
        network_correct=outputs.argmax(1) == labels,
        contradicted=predictions.argmax(1) != labels,
        fidelity=KernelFidelity(
            agreement=surrogate_fidelity.agreement,
            agreement_se=surrogate_fidelity.agreement_se,
            agreement_required=AGREEMENT_REQUIRED,
            relative_error=surrogate_fidelity.relative_error,
            label_regression_agreement=fidelity(predictions[test], outputs[test]).agreement,
            label_regression_test_accuracy=_accuracy(predictions[test], labels[test]),
            surrogate_test_accuracy=_accuracy(surrogate_predictions[test], labels[test]),
            label_regression_ridge=label_ridge,
            surrogate_ridge=surrogate_ridge,
            label_regression_loo_error=_mean_square(label_regression.errors),
            surrogate_loo_error=surrogate_loo_error,
        ),
    )


def control_positions(near: NearDuplicates, n_train: int) -> Tensor:
    """Return the positions of the representatives of all groups that consist of test rows only."""
    seen = np.zeros(near.group.max() + 1, bool)
    seen[near.group[:n_train]] = True
    rows = near.representative
    return rows[torch.from_numpy(~seen[near.group[rows.numpy()]])]


def _predictions(regression: LeaveOneOut, kernel: AuditKernel, near: NearDuplicates) -> tuple[Tensor, Tensor]:
    """Return the predictions of all N rows without and with their group, both (N, C)."""
    N, C = kernel.shape[0], regression.targets.shape[1]
    rows = near.representative
    without = torch.zeros(N, C, dtype=torch.float64)
    with_row = torch.zeros(N, C, dtype=torch.float64)
    without[rows], with_row[rows] = regression.predictions, regression.fitted
    others = torch.from_numpy(np.setdiff1d(np.arange(N), rows.numpy()))
    if not len(others):
        return without, with_row
    position = torch.zeros(len(rows), dtype=torch.int64)
    position[torch.from_numpy(near.group[rows.numpy()])] = torch.arange(len(rows))
    for batch in others.split(max(1, INFLUENCE_SIZE // (len(rows) * C))):
        to_rows = kernel_entries(kernel, batch, rows)
        removed = position[torch.from_numpy(near.group[batch.numpy()])]
        with_row[batch] = regression.predict(to_rows)
        without[batch] = with_row[batch] - regression.influence(to_rows)[torch.arange(len(batch)), removed]
    return without, with_row


def _accuracy(outputs: Tensor, labels: Tensor) -> float:
    return float((outputs.argmax(1) == labels).double().mean())


def _mean_square(residual: Tensor) -> float:
    return float(residual.square().sum(1).mean())
