"""Preparation of a model for per-example derivatives: a private copy, one dtype, eval mode."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kernelmem.core.batches import Batch, Forward, Rows, named_leaves
from kernelmem.core.errors import InputError, UnsupportedModelError
from kernelmem.core.torch_func import is_transformed


class _ContiguousGradients(TorchFunctionMode):
    """Makes the gradients of normalization layers contiguous: torch 2.13 is wrong on the CPU for some other strides."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func in (F.batch_norm, F.instance_norm) and output.requires_grad and not is_transformed(output):
            node = output.grad_fn
            if func is F.instance_norm or (node is not None and "BatchNorm" in node.name()):  # not rewritten by a rule
                output.register_hook(lambda gradient: gradient.contiguous())
        return output


@dataclass(frozen=True)
class PreparedModel:
    """A private copy of a model, in which exactly the selected parameters require gradients."""

    module: nn.Module
    forward: Forward
    parameters: dict[str, nn.Parameter]  # name (the first, if tied) -> parameter of the copy
    dtype: torch.dtype
    device: torch.device
    n_outputs: int = 0

    def outputs(self, batch: Batch, n: int) -> Tensor:
        """Run the model on a batch of n rows and check that the result is (n, C).

        Raises:
            UnsupportedModelError: the result is not a tensor of shape (n, C).
        """
        with _ContiguousGradients():
            result = self.forward(self.module, batch)
        if not isinstance(result, Tensor) or result.ndim != 2 or result.shape[0] != n or result.shape[1] == 0:
            description = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise UnsupportedModelError(
                f"a model whose output on {n} rows is {description}",
                expected=f"a tensor of shape ({n}, C): C outputs per example",
                hint="pass forward=lambda model, batch: ... that returns (n, C), e.g. model(batch).logits or [:, None]",
            )
        return result

    @property
    def n_parameters(self) -> int:
        """Number P of selected scalar parameters."""
        return sum(p.numel() for p in self.parameters.values())


def prepare(
    model: nn.Module,
    rows: Rows,
    *,
    forward: Forward | None = None,
    parameters: Iterable[str] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    evaluation: bool = False,
) -> PreparedModel:
    """Copy ``model`` and select the parameters; the user's module is never changed.

    dtype and device default to those of the model's first floating-point parameter. With ``evaluation`` the copy is put
    into eval mode; without it, a model in training mode is refused if that changes its outputs.

    Raises:
        UnsupportedModelError: train-mode BatchNorm, active dropout, outputs that are not (n, C) or not deterministic.
        InputError: unknown parameter names, no parameters, a dtype other than float32 and float64.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model of type {type(model).__name__}",
            expected="a torch.nn.Module",
            hint="wrap your function in a torch.nn.Module",
        )
    if not evaluation:
        check_eval_mode(model)
    first_parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if first_parameter is None:
        raise InputError(
            "a model without parameters",
            expected="parameters",
            hint="pass a model with at least one floating-point parameter",
        )
    dtype = dtype or first_parameter.dtype
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"dtype {dtype}", expected="torch.float32 or torch.float64", hint="pass dtype=torch.float32")
    device = torch.device(device) if device is not None else first_parameter.device
    try:
        module = copy.deepcopy(model).to(device=device, dtype=dtype)
    except RuntimeError as error:  # deepcopy of a module that holds non-leaf tensors
        raise UnsupportedModelError(
            f"a {type(model).__name__} that cannot be copied ({error})",
            expected="a module that copy.deepcopy can copy",
            hint="replace torch.nn.utils.weight_norm by torch.nn.utils.parametrizations.weight_norm",
        ) from error
    if evaluation:
        module.eval()
    parameter_of_name = dict(module.named_parameters())
    selected_names = (
        [name for name, p in parameter_of_name.items() if p.requires_grad] if parameters is None else list(parameters)
    )
    unknown_names = [name for name in selected_names if name not in parameter_of_name]
    if unknown_names or not selected_names:
        raise InputError(
            f"parameters {unknown_names or selected_names}",
            expected=f"names among {', '.join(list(parameter_of_name)[:8])}{', ...' if len(parameter_of_name) > 8 else ''}",
            hint="use names of model.named_parameters(); with parameters=None at least one must require grad",
        )
    for name, parameter in parameter_of_name.items():
        parameter.requires_grad_(name in selected_names)
    selected_parameters = {name: parameter for name, parameter in parameter_of_name.items() if parameter.requires_grad}
    prepared = PreparedModel(module, forward or (lambda m, batch: m(batch)), selected_parameters, dtype, device)
    return replace(prepared, n_outputs=_check_outputs(prepared, rows))


def check_rows(prepared: PreparedModel, rows: Rows) -> None:
    """Check that the model accepts other rows than those it was prepared on.

    Raises:
        InputError: the model does not accept their shape or dtype, or returns a different number of outputs.
    """
    n_outputs = _check_outputs(prepared, rows)
    if n_outputs != prepared.n_outputs:
        raise InputError(
            f"rows x with {prepared.n_outputs} outputs and rows y with {n_outputs}",
            expected="the same number of outputs for x and y",
            hint="check the shape of y",
        )


def _check_outputs(prepared: PreparedModel, rows: Rows) -> int:
    """Return the number of outputs C; raise UnsupportedModelError if two runs on the same examples differ."""
    indices = [0, min(1, rows.n - 1)]
    batch = rows.to(dtype=prepared.dtype, device=prepared.device).take(indices)
    try:
        with torch.no_grad():
            first = prepared.outputs(batch, 2)
            second = prepared.outputs(batch, 2)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, UnsupportedModelError):
            raise
        shapes = [tuple(leaf.shape) for _, leaf in named_leaves(batch, "x")]
        raise InputError(
            f"rows of shape {shapes} that the model does not accept ({error})",
            expected="inputs that model(x) accepts",
            hint="check the shape and dtype of the inputs, or pass forward=",
        ) from error
    if not torch.equal(first, second) and not bool((first.isnan() & second.isnan()).any()):
        raise UnsupportedModelError(
            "a model whose two runs on the same rows differ",
            expected="a deterministic model",
            hint="call model.eval(), and remove functional dropout or sampling from its forward pass",
        )
    return first.shape[1]


def check_eval_mode(model: nn.Module) -> None:
    """Check that the output of an example does not depend on the other examples of its batch, or on random numbers.

    Raises:
        UnsupportedModelError: BatchNorm in training mode or without running statistics, or active dropout.
    """
    for name, module in model.named_modules():
        uses_batch_statistics = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
        if not module.training and not uses_batch_statistics:
            continue
        is_dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        is_recurrent_with_dropout = isinstance(module, nn.RNNBase) and module.dropout > 0 and module.num_layers > 1
        is_attention_with_dropout = isinstance(module, nn.MultiheadAttention) and module.dropout > 0
        is_batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if is_dropout or is_recurrent_with_dropout or is_attention_with_dropout or is_batch_norm:
            effect = "mixes the rows of a batch" if is_batch_norm else "drops units at random"
            raise UnsupportedModelError(
                f"module {name or '(root)'!r} ({type(module).__name__})"
                f" {'in training mode' if module.training else 'without running statistics'}, which {effect}",
                expected="a model in which an example's output depends on that example alone",
                hint="call model.eval() first (and model.train() afterwards, to continue training)",
            )
