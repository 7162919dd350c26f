"""Per-example losses, by name or as callables, and their mean or sum over a batch."""

import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kernelmem.core.batches import Forward, Tree, check_outputs
from kernelmem.core.checks import check_callable, describe
from kernelmem.core.errors import InputError
from kernelmem.training.loss_modules import CLASS_LOSSES, in_dtype, module_from_name, module_name

Loss = str | Callable[[Tensor, Tensor], Tensor]  # a loss module of torch.nn is a callable
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


def class_forward(forward: Forward | None = None) -> Forward:
    """Return the function (model, batch) -> outputs (n, 2) of a model of two classes, which may have one logit.

    ``forward`` maps (model, batch) to the outputs of the model; None: ``model(batch)``.
    """

    def two_outputs(model: nn.Module, batch: Tree) -> Tensor:
        outputs = model(batch) if forward is None else forward(model, batch)
        return class_outputs(outputs) if isinstance(outputs, Tensor) else outputs

    return two_outputs


def per_example_loss(loss: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function (outputs (n, C), targets) -> losses (n,), for n examples and C outputs.

    ``loss`` is a name, or a callable of this form, whose result is then checked. For outputs f and targets y:

    - ``"cross_entropy"``: -log softmax(f)[y] for labels y (n,), or -sum_c y_c log softmax(f)[c] for y (n, C);
      0 for the label -100, as in torch; for labels and one output z it is that of [0, z] (:func:`class_outputs`), the binary
      cross-entropy with logits;
    - ``"mse"``: 1/2 sum_c (f_c - y_c)^2, labels (n,) as one-hot if C > 1;
    - ``"mse_mean"``: 1/C sum_c (f_c - y_c)^2, the convention of ``torch.nn.functional.mse_loss``;
    - a loss module of torch.nn that reduces to a mean or sum, as ``nn.CrossEntropyLoss(weight=..., label_smoothing=0.1)``,
      or its name: l_i is its unreduced loss, weights included, averaged or summed over the outputs;
    - a callable for every other loss: ``lambda f, y: (f - y).abs().amax(1)``. Tensors inside it may have a narrower dtype
      than the outputs.

    Raises:
        InputError: the name is unknown; when called: losses are not (n,), targets have a wrong shape or range, or the callable
            does not accept the dtype of the outputs.
        UnsupportedModelError: when called: outputs are not (n, C).

    >>> import torch
    >>> per_example_loss("mse")(torch.tensor([[1.0, 2.0]]), torch.tensor([1]))
    tensor([1.])
    """
    loss = as_loss(loss)
    if callable(loss):
        return lambda outputs, targets: _check_losses(_call_loss(loss, outputs, targets), len(outputs))
    named_module = module_from_name(loss)
    if named_module is not None:
        return lambda outputs, targets: _module_losses(*named_module, outputs, targets)
    return {"cross_entropy": _cross_entropy, "mse": _mse, "mse_mean": _mse_mean}[loss]


def batch_loss(loss: Loss, outputs: Tensor, targets: Tensor, sample_weight: Tensor | None, *, reduction: str) -> Tensor:
    """Return the loss of a batch of n rows, a scalar tensor: sum_i w_i l_i for ``reduction="sum"``, that over n for "mean".

    l_i is the loss of row i, w_i its entry in ``sample_weight`` (None: 1). The mean divides by n, not by sum_i w_i.

    Raises:
        InputError, UnsupportedModelError: see :func:`per_example_loss`.
    """
    loss = as_loss(loss)
    if loss == "mse_mean" and reduction == "mean" and sample_weight is None:
        # torch's kernel rounds once, a mean of means twice: replay must reproduce the former to the bit
        check_outputs(outputs, len(outputs))
        return F.mse_loss(outputs, _real_targets(outputs, targets))
    losses = per_example_loss(loss)(outputs, targets)
    if sample_weight is not None:
        losses = losses * sample_weight.to(losses.dtype)
    return losses.mean() if reduction == "mean" else losses.sum()


def as_loss(loss: Loss) -> Loss:
    """Return ``loss`` as a name or a callable: a loss module of torch.nn becomes its name.

    Raises:
        InputError: the name is unknown; the message lists the known ones.
    """
    if callable(loss):
        name = module_name(loss)
        if name is None:
            check_callable(loss, "loss", ("outputs", "targets"), modules=True)
        return name or loss
    if not isinstance(loss, str) or (loss not in LOSSES and module_from_name(loss) is None):
        raise InputError(
            f"loss={describe(loss)}",
            expected=f"one of {', '.join(LOSSES)}, a loss module of torch.nn, or a callable (outputs, targets) -> (n,) losses",
            hint="pass the loss of your training loop, with one number per example",
        )
    return loss


def loss_reduction(loss: Loss) -> str | None:
    """Return "mean" or "sum" if the loss is a module of torch.nn (or its name), else None."""
    loss = as_loss(loss)
    named_module = None if callable(loss) else module_from_name(loss)
    return None if named_module is None else named_module.reduction


def mean_factor(loss: Loss, targets: Tensor) -> float:
    """Return the reduced loss of a torch.nn module over the mean of its unreduced losses of n rows; 1 for other losses.

    With class weights or ignored labels the module divides by the sum of the weights of the labels, not by n.

    >>> round(mean_factor(nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0])), torch.tensor([0, 0, 1])), 6)
    0.6
    """
    named_module = module_from_name(loss) if isinstance(loss, str) else None
    module, reduction = named_module or (loss, getattr(loss, "reduction", None))
    if not isinstance(module, nn.CrossEntropyLoss | nn.NLLLoss) or reduction != "mean" or targets.is_floating_point():
        return 1.0
    counted = targets[targets != module.ignore_index].long()
    weights = torch.ones(len(counted)) if module.weight is None else module.weight.detach()[counted]
    return float(len(targets) / weights.double().sum())


def loss_name(loss: Loss) -> str:
    """Return ``loss`` if it is a name, else "callable:" followed by module and qualified name of the callable.

    The name of a loss module of torch.nn is its class with its options.
    """
    loss = module_name(loss) or loss
    if isinstance(loss, str):
        return loss
    return f"callable:{getattr(loss, '__module__', '')}.{getattr(loss, '__qualname__', type(loss).__qualname__)}"


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy (n,) of each of n examples for outputs (n, C), with labels also for one logit (n, 1)."""
    check_outputs(outputs, len(outputs))
    if targets.ndim == 1:
        outputs = class_outputs(outputs)
    return F.cross_entropy(outputs, _class_targets(outputs, targets, IGNORED_LABEL), reduction="none")


def _module_losses(module: nn.Module, reduction: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the unreduced losses (n,) of a loss module of torch.nn, averaged or summed over the outputs."""
    check_outputs(outputs, len(outputs))
    if isinstance(module, CLASS_LOSSES):
        targets = _class_targets(outputs, targets, getattr(module, "ignore_index", None))
    else:
        targets = _real_targets(outputs, targets)
    losses = in_dtype(module, outputs.dtype)(outputs, targets)
    if losses.ndim == 1:
        return losses
    return losses.mean(1) if reduction == "mean" else losses.sum(1)


class _PromotedFloats(TorchFunctionMode):
    """Converts the floating-point tensors of each operation to the widest dtype among them, as arithmetic does."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [value for value in (*args, *kwargs.values()) if _is_float(value)]
        dtypes = {tensor.dtype for tensor in tensors}
        if len(dtypes) > 1 and not _IN_PLACE.fullmatch(getattr(func, "__name__", "")):
            widest = max(dtypes, key=lambda dtype: torch.finfo(dtype).bits)
            args = tuple(value.to(widest) if _is_float(value) else value for value in args)
            kwargs = {name: value.to(widest) if _is_float(value) else value for name, value in kwargs.items()}
        return func(*args, **kwargs)


_IN_PLACE = re.compile(r"__set\w+|__i(add|sub|mul|truediv|pow)__|\w*[a-z0-9]_")


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0


def _call_loss(loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
    """Return ``loss(outputs, targets)``, with narrower tensors inside it converted if torch does not accept them.

    Raises:
        InputError: the loss does not accept the dtype of the outputs.
    """
    try:
        return loss(outputs, targets)
    except RuntimeError as error:
        if "dtype" not in str(error) and "scalar type" not in str(error):
            raise
        try:
            with _PromotedFloats():
                return loss(outputs, targets)
        except RuntimeError:
            raise InputError(
                f"a loss that fails on outputs of dtype {str(outputs.dtype).removeprefix('torch.')} ({error})",
                expected="a loss for outputs of any floating-point dtype: analyses use float64",
                hint="create tensors inside the loss in the dtype of the outputs, e.g. weight.to(outputs.dtype)",
            ) from error


def _class_targets(outputs: Tensor, targets: Tensor, ignored_label: int | None) -> Tensor:
    """Return integer labels (n,) or class probabilities (n, C) for outputs (n, C), after checking shape and range."""
    check_outputs(outputs, len(outputs))
    labels = targets if targets.is_floating_point() else targets.long()
    if tuple(labels.shape) not in ((len(outputs),), tuple(outputs.shape)) or labels.is_floating_point() != (
        labels.ndim == 2
    ):
        raise _target_mismatch(outputs, targets, "integer labels (n,), or class probabilities (n, C)")
    if labels.ndim == 1 and labels.numel():
        smallest, largest = (int(bound) for bound in labels.aminmax())
        is_outside = (labels < 0) | (labels >= outputs.shape[1])
        if bool((is_outside if ignored_label is None else is_outside & (labels != ignored_label)).any()):
            raise _target_mismatch(outputs, targets, f"labels 0..{outputs.shape[1] - 1} (here {smallest}..{largest})")
    return labels


def _mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return half the squared distance (n,) between outputs (n, C) and targets (n, C), or labels (n,) as one-hot."""
    check_outputs(outputs, len(outputs))
    return 0.5 * (outputs - _real_targets(outputs, targets)).square().sum(1)


def _mse_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared difference (n,) between outputs (n, C) and targets (n, C), or labels (n,) as one-hot."""
    check_outputs(outputs, len(outputs))
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


def _check_losses(losses: Tensor, n: int) -> Tensor:
    """Return ``losses``, after checking that it is a tensor with one loss for each of n examples."""
    if not isinstance(losses, Tensor) or tuple(losses.shape) != (n,):
        returned = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise InputError(
            f"a loss that returns {returned} for {n} examples",
            expected=f"a tensor ({n},), one loss per example",
            hint='compute the loss with reduction="none", and its mean over the outputs of each example',
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
