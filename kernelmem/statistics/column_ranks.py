"""Rank correlations of many columns at once."""

import torch
from torch import Tensor


def centered_ranks(values: Tensor) -> Tensor:
    """Return midranks over the first axis minus their mean (S − 1) / 2, for each column of (S, t); nothing is checked.

    >>> centered_ranks(torch.tensor([[1.0], [3.0], [3.0]])).flatten().tolist()
    [-1.0, 0.5, 0.5]
    """
    columns = values.T.contiguous()
    ordered = columns.sort(1).values
    n_smaller, n_up_to = (torch.searchsorted(ordered, columns, right=right) for right in (False, True))
    return (n_smaller + n_up_to - len(values)).T.to(torch.float64) / 2


def column_correlations(a: Tensor, b: Tensor) -> Tensor:
    """Return the correlations (t,) of the columns of two centered arrays (S, t); 0 if a column is zero.

    Of :func:`centered_ranks` they are Spearman's correlations.
    """
    norm = (a.square().sum(0) * b.square().sum(0)).sqrt()
    return torch.where(norm > 0, (a * b).sum(0) / norm.clamp_min(1e-300), 0.0).clamp(-1, 1)
