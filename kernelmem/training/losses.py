"""Per-example losses, by name or as callables, and their mean or sum over a batch."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from kernelmem.core.errors import InputError, UnsupportedModelError

Loss = str | Callable[[Tensor, Tensor], Tensor]
LOSSES = ("cross_entropy", "mse", "mse_mean")
REDUCTIONS = ("mean", "sum")
IGNORED_LABEL = -100  # label of rows without a loss, as in torch


def class_outputs(outputs: Tensor) -> Tensor:
    """Return outputs f (n, C) with one column per class: one logit z per row, (n, 1) or (n,), becomes f = [0, z].

    This is the convention of kernelmem for binary classifiers with one logit: the softmax of [0, z] is [1 − σ(z), σ(z)], its
    cross-entropy is the binary cross-entropy with logits, class 1 is predicted for z > 0, and the margin is z for label 1 and
    −z for label 0. Other outputs are returned unchanged.

    >>> import torch
    >>> class_outputs(torch.tensor([[2.0], [-1.0]])).tolist()
    [[0.0, 2.0], [0.0, -1.0]]
    """
    if outputs.ndim == 1 or (outputs.ndim == 2 and outputs.shape[1] == 1):
        logit = outputs.reshape(-1, 1)
        return F.pad(logit, (1, 0))
    return outputs


def per_example_loss(loss: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function (outputs (n, C), targets) -> losses (n,), for n examples and C outputs.

    ``loss`` is a name, or a callable of this form, whose result is then checked. For outputs f and targets y:

    - ``"cross_entropy"``: -log softmax(f)[y] for labels y (n,), or -sum_c y_c log softmax(f)[c] for y (n, C);
      0 for the label -100, as in torch; for labels and one output z it is that of [0, z] (:func:`class_outputs`), the binary
      cross-entropy with logits;
    - ``"mse"``: 1/2 sum_c (f_c - y_c)^2, labels (n,) as one-hot if C > 1;
    - ``"mse_mean"``: 1/C sum_c (f_c - y_c)^2, the convention of ``torch.nn.functional.mse_loss``;
    - a callable for every other loss, e.g. label smoothing:
      ``lambda f, y: F.cross_entropy(f, y, label_smoothing=0.1, reduction="none")``.

    Raises:
        InputError: the name is unknown; when called: losses are not (n,), or targets have a wrong shape or range.
        UnsupportedModelError: when called: outputs are not (n, C).

    >>> import torch
    >>> per_example_loss("mse")(torch.tensor([[1.0, 2.0]]), torch.tensor([1]))
    tensor([1.])
    """
    check_loss(loss)
    if callable(loss):
        return lambda outputs, targets: _check_losses(loss(outputs, targets), len(outputs))
    return {"cross_entropy": _cross_entropy, "mse": _mse, "mse_mean": _mse_mean}[loss]


def batch_loss(loss: Loss, outputs: Tensor, targets: Tensor, sample_weight: Tensor | None, *, reduction: str) -> Tensor:
    """Return the loss of a batch of n rows, a scalar tensor: sum_i w_i l_i for ``reduction="sum"``, that over n for "mean".

    l_i is the loss of row i, w_i its entry in ``sample_weight`` (None: 1). The mean divides by n, not by sum_i w_i.

    Raises:
        InputError, UnsupportedModelError: see :func:`per_example_loss`.
    """
    if loss == "mse_mean" and reduction == "mean" and sample_weight is None:
        # torch's kernel rounds once, a mean of means twice: replay must reproduce the former to the bit
        _check_outputs(outputs)
        return F.mse_loss(outputs, _real_targets(outputs, targets))
    losses = per_example_loss(loss)(outputs, targets)
    if sample_weight is not None:
        losses = losses * sample_weight.to(losses.dtype)
    return losses.mean() if reduction == "mean" else losses.sum()


def check_loss(loss: Loss) -> None:
    """Check that ``loss`` is a known name or a callable.

    Raises:
        InputError: the name is unknown; the message lists the known ones.
    """
    if not callable(loss) and loss not in LOSSES:
        raise InputError(
            f"loss={loss!r}",
            expected=f"one of {', '.join(LOSSES)}, or a callable (outputs, targets) -> (n,) losses",
            hint="pass the loss of your training loop, with one number per example",
        )


def loss_name(loss: Loss) -> str:
    """Return ``loss`` if it is a name, else "callable:" followed by module and qualified name of the callable."""
    if isinstance(loss, str):
        return loss
    return f"callable:{getattr(loss, '__module__', '')}.{getattr(loss, '__qualname__', type(loss).__qualname__)}"


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy (n,) of each of n examples for outputs (n, C).

    Targets are integer labels (n,) or class probabilities (n, C); their shape and the range of labels are checked.
    """
    _check_outputs(outputs)
    labels = targets if targets.is_floating_point() else targets.long()
    if tuple(labels.shape) not in ((len(outputs),), tuple(outputs.shape)) or labels.is_floating_point() != (
        labels.ndim == 2
    ):
        raise _target_mismatch(outputs, targets, "integer labels (n,), or class probabilities (n, C)")
    if labels.ndim == 1:
        outputs = class_outputs(outputs)
    if labels.ndim == 1 and labels.numel():
        smallest, largest = (int(bound) for bound in labels.aminmax())
        if largest >= outputs.shape[1] or (smallest < 0 and bool(((labels < 0) & (labels != IGNORED_LABEL)).any())):
            raise _target_mismatch(outputs, targets, f"labels 0..{outputs.shape[1] - 1} (here {smallest}..{largest})")
    return F.cross_entropy(outputs, labels, reduction="none")


def _mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return half the squared distance (n,) between outputs (n, C) and targets (n, C), or labels (n,) as one-hot."""
    _check_outputs(outputs)
    return 0.5 * (outputs - _real_targets(outputs, targets)).square().sum(1)


def _mse_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared difference (n,) between outputs (n, C) and targets (n, C), or labels (n,) as one-hot."""
    _check_outputs(outputs)
    return (outputs - _real_targets(outputs, targets)).square().mean(1)


def _real_targets(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return targets (n, C) in the dtype of the outputs (n, C).

    Real targets keep their values; integer labels (n,) become one-hot rows if C > 1.
    """
    n, c = outputs.shape
    are_labels = not targets.is_floating_point() and targets.ndim == 1 and c > 1
    if are_labels and len(targets) == n and int(targets.min()) >= 0 and int(targets.max()) < c:
        return F.one_hot(targets.long(), c).to(outputs.dtype)
    if are_labels or targets.numel() != n * c or len(targets) != n:
        raise _target_mismatch(outputs, targets, f"real targets {(n, c)}, or labels ({n},) in 0..{c - 1}")
    return targets.reshape(n, c).to(outputs.dtype)


def _check_outputs(outputs: Tensor) -> None:
    """Check that the outputs of a model have two axes: n examples, C outputs."""
    if outputs.ndim != 2:
        raise UnsupportedModelError(
            f"model outputs of shape {tuple(outputs.shape)}",
            expected="(n, C), one row of outputs per example",
            hint="pass the loss as a callable (outputs, targets) -> (n,) losses",
        )


def _check_losses(losses: Tensor, n: int) -> Tensor:
    """Return ``losses``, after checking that it is a tensor with one loss for each of n examples."""
    if not isinstance(losses, Tensor) or tuple(losses.shape) != (n,):
        returned = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise InputError(
            f"a loss that returns {returned} for {n} examples",
            expected=f"a tensor ({n},), one loss per example",
            hint='compute the loss with reduction="none"',
        )
    return losses


def _target_mismatch(outputs: Tensor, targets: Tensor, expected: str) -> InputError:
    """Return the error for targets that do not fit the outputs; ``expected`` describes the required targets."""
    return InputError(
        f"targets of shape {tuple(targets.shape)} and dtype {str(targets.dtype).removeprefix('torch.')}"
        f" for outputs {tuple(outputs.shape)}",
        expected=expected,
        hint="pass y in the form that the loss of your training loop expects, or the loss as a callable",
    )
