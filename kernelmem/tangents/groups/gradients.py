"""Output gradients of a use, one output direction after another, in the layout that its rule asks for."""

from collections.abc import MutableMapping

from torch import Tensor

from kernelmem.tangents.capture import ParameterUse, UseKey
from kernelmem.tangents.groups.base import UseGradients


def store_direction(
    stored: MutableMapping[UseKey, UseGradients], use: ParameterUse, gradient: UseGradients, direction: int, k: int
) -> None:
    """Write the gradient of one use in one of k directions into ``stored``, which maps the key of a use to its gradients.

    Output gradients get their k directions along the axis that the rule asks for, tangents along axis 1; None means 0.
    """
    target = stored.get(use.key)
    if gradient is None:
        if isinstance(target, Tensor):
            target.select(use.rule.direction_axis(use) % target.ndim, direction).zero_()
        elif target is not None:
            for tangents in target.values():
                tangents[:, direction] = 0.0
        return
    if isinstance(gradient, Tensor):
        axis = use.rule.direction_axis(use) % gradient.ndim
        if not isinstance(target, Tensor):
            shape = (*gradient.shape[:axis], k, *gradient.shape[axis + 1 :])
            target = stored[use.key] = gradient.new_empty(shape) if direction == 0 else gradient.new_zeros(shape)
        target.select(axis, direction).copy_(gradient.select(axis, 0))
        return
    if not isinstance(target, dict):
        target = stored[use.key] = {slot: t.new_zeros(len(t), k, *t.shape[2:]) for slot, t in gradient.items()}
    for slot, tangent in gradient.items():
        target[slot][:, direction] = tangent[:, 0]


def one_direction(use: ParameterUse, gradient: Tensor | None, n: int) -> UseGradients:
    """Return the output gradient of a use with an axis of one direction, or None if ``gradient`` is None.

    If the rule of the use has no outer-product form, return instead the tangents of its n examples, by slot.
    """
    if gradient is None:
        return None
    rows = use.rule.arrange(use, use.batch_axis.rows(gradient, n))
    with_direction = rows.unsqueeze(use.rule.direction_axis(use) % (rows.ndim + 1))
    if use.rule.outer_shape(use, n) is not None:
        return with_direction
    return use.rule.direct_tangents(use, with_direction, n)  # reduced at once, while the gradient is in cache
