"""Outputs of the shape that analyses need, and losses of which each depends on its own row only."""

from collections.abc import Callable

import torch
from torch import Tensor

from kernelmem.core.errors import InputError

ROUNDINGS = 256  # largest accepted difference, in units of eps, of losses and their derivatives in two batches

HINT = (
    "a contrastive loss, hard mining or a normalization over the batch cannot be attributed to single examples: make the group"
    " the example, with its rows in one row of x and y, and forward= that returns (n, C) for n groups"
)


def check_rows_are_independent(
    loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor, *, step: int, name: str
) -> None:
    """Check that the loss of each of n rows is the same in the batch and in random halves of it.

    The derivatives of the losses must be row by row too: with v_i in [1, 2], row i of the gradient of sum_i v_i l_i with
    respect to the outputs (n, C) must be v_i times row i of that of sum_i l_i.

    Raises:
        InputError: a loss depends on other rows, or on random numbers.

    Cost: five evaluations of the loss and two backward passes through it, none through the model.
    """
    n = len(outputs)
    generator = torch.Generator().manual_seed(step)
    factors = 1 + torch.rand(n, generator=generator, dtype=torch.float64).to(outputs)
    order = torch.randperm(n, generator=generator)
    with torch.enable_grad():
        leaf = outputs.detach().clone().requires_grad_()
        losses = loss(leaf, targets)
        if not losses.requires_grad:
            return
        derivatives = torch.autograd.grad(losses.sum(), leaf, retain_graph=True)[0]
        weighted = torch.autograd.grad((factors.to(losses.dtype) * losses).sum(), leaf)[0]
    losses, row_factors = losses.detach(), factors.view(-1, *[1] * (outputs.ndim - 1))
    magnitude = (outputs.detach().abs() * derivatives.abs()).sum() / n + losses.abs().max() + derivatives.abs().max()
    limit = ROUNDINGS * max(torch.finfo(t.dtype).eps for t in (outputs, losses)) * float(magnitude)
    differences = [(weighted - row_factors * derivatives).abs().flatten(1).amax(1)]
    for parts in (order.split(-(-n // 2)), (order[::2], order[1::2])) if n > 1 else ():
        separate = torch.empty_like(losses)
        try:
            with torch.no_grad():
                for rows in parts:
                    separate[rows] = loss(outputs.detach()[rows], targets[rows])
        except Exception as error:  # raised by the user's function, so of any type
            raise InputError(
                f"the loss {name}, which fails on a part of the batch of step {step} ({error})",
                expected="losses (n,) of which each depends on the outputs and targets of its own row, for any number n of rows",
                hint=HINT,
            ) from error
        differences.append((separate - losses).abs())
    worst = torch.stack([difference.to(torch.float64) for difference in differences]).amax(0)
    if not bool((worst <= limit).all()):  # negated, so that NaN is refused
        row = int(worst.nan_to_num(torch.inf).argmax())
        raise InputError(
            f"the loss {name}, in which the loss of row {row} of the batch of step {step} depends on the other rows or on"
            f" random numbers (by {float(worst[row]):.3g})",
            expected="losses (n,) of which each depends on the outputs and targets of its own row",
            hint=HINT,
        )
