"""Memorization and accuracy by class and by group, with p-values corrected for the number of slices."""

import numpy as np
import torch
from torch import Tensor

from kernelmem.auditing.data_checks import AuditInputs
from kernelmem.auditing.schema import Slice
from kernelmem.auditing.schema.row_table import RowTable
from kernelmem.statistics import clopper_pearson, holm


def slices(table: RowTable, inputs: AuditInputs, groups: dict[str, list[str]]) -> tuple[Slice, ...]:
    """Return the results of every class and of every group that the user named.

    The p-value of a slice is that of Fisher's exact test (two-sided) between the flagged share in the slice and in all other
    training rows, adjusted by Holm's method for all slices.
    """
    data = inputs.data
    test_correct = (inputs.test_outputs.argmax(1) == data.y_test).numpy()
    masks: list[tuple[str, str, np.ndarray, np.ndarray]] = [
        ("class", name, (data.y_train == label).numpy(), (data.y_test == label).numpy())
        for label, name in enumerate(inputs.labels.names)
    ]
    nowhere = np.zeros(len(test_correct), bool)
    for grouping, members in groups.items():
        texts = np.array(members, dtype=object)
        for group in sorted(set(members)):
            masks.append(("group", group if len(groups) == 1 else f"{grouping}: {group}", texts == group, nowhere))
    p_values = [_fisher(table.flagged, inside) for _, _, inside, _ in masks]
    tested = [k for k, p in enumerate(p_values) if p is not None]
    adjusted = dict(zip(tested, _adjusted([p_values[k] for k in tested]), strict=True))
    return tuple(
        Slice(
            kind="class" if kind == "class" else "group",
            name=name,
            n_train=int(inside.sum()),
            n_test=int(test.sum()),
            n_flagged=int(table.flagged[inside].sum()),
            fraction=clopper_pearson(int(table.flagged[inside].sum()), int(inside.sum())) if inside.any() else None,
            adjusted_p=adjusted.get(k),
            train_accuracy=float(table.network_correct[inside].mean()) if inside.any() else None,
            test_accuracy=float(test_correct[test].mean()) if test.any() else None,
            n_contradicted=int((table.loo_margin[inside] < 0).sum()),
        )
        for k, (kind, name, inside, test) in enumerate(masks)
    )


def _adjusted(p_values: list[float | None]) -> list[float]:
    if not p_values:
        return []
    adjusted: Tensor = torch.as_tensor(holm(np.array(p_values, dtype=np.float64)))
    return [float(p) for p in adjusted]


def _fisher(flagged: np.ndarray, inside: np.ndarray) -> float | None:
    """Return Fisher's exact p-value of the flagged share inside and outside; None if one of the two sides is empty."""
    from scipy.stats import fisher_exact

    if not inside.any() or inside.all():
        return None
    a, b = int(flagged[inside].sum()), int(flagged[~inside].sum())
    table = [[a, int(inside.sum()) - a], [b, int((~inside).sum()) - b]]
    _, p_value = fisher_exact(table)
    return float(np.asarray(p_value))
