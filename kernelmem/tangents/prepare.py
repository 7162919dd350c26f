"""The user's model made ready: a private copy, in one dtype, in a state where an example's output is its own."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kernelmem.core.batches import Batch, Forward, Rows, named_leaves
from kernelmem.core.errors import InputError, UnsupportedModelError
from kernelmem.core.torch_func import is_transformed

__all__ = ["PreparedModel", "check_eval_mode", "check_rows", "prepare"]


class _ContiguousGradients(TorchFunctionMode):
    """Hands normalization layers contiguous gradients: torch 2.13 is wrong on the CPU for some other strides."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func in (F.batch_norm, F.instance_norm) and output.requires_grad and not is_transformed(output):
            node = output.grad_fn
            if func is F.instance_norm or (node is not None and "BatchNorm" in node.name()):  # not rewritten by a rule
                output.register_hook(lambda gradient: gradient.contiguous())
        return output


@dataclass(frozen=True)
class PreparedModel:
    """A private copy of a model, with the parameters whose tangents are wanted requiring gradients."""

    module: nn.Module
    forward: Forward
    parameters: dict[str, nn.Parameter]  # name (first one, where tied) -> parameter of the copy
    dtype: torch.dtype
    device: torch.device
    n_outputs: int = field(default=0)

    def outputs(self, batch: Batch, n: int) -> Tensor:
        """Run the model on a batch of n rows; the result is checked to be (n, C)."""
        with _ContiguousGradients():
            result = self.forward(self.module, batch)
        if not isinstance(result, Tensor) or result.ndim != 2 or result.shape[0] != n or result.shape[1] == 0:
            what = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise UnsupportedModelError(
                f"a model whose output on {n} rows is {what}",
                expected=f"a tensor of shape ({n}, C): one row of C outputs for each example",
                hint="pass forward=lambda model, batch: ... that returns (n, C), e.g. model(batch).logits or [:, None]",
            )
        return result

    @property
    def n_parameters(self) -> int:
        """Number of scalar parameters whose tangents are taken."""
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
    into eval mode; without, a model in training mode is refused where that matters.

    Raises:
        UnsupportedModelError: train-mode BatchNorm, active dropout, outputs that are not (n, C) or not deterministic.
        InputError: unknown parameter names, no parameters, a dtype other than float32 and float64.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model of type {type(model).__name__}", expected="a torch.nn.Module", hint="wrap it in one")
    if not evaluation:
        check_eval_mode(model)
    reference = next((p for p in model.parameters() if p.is_floating_point()), None)
    if reference is None:
        raise InputError("a model without parameters", expected="parameters", hint="pass a model that can be trained")
    dtype = dtype or reference.dtype
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"dtype {dtype}", expected="torch.float32 or torch.float64", hint="pass dtype=torch.float32")
    device = torch.device(device) if device is not None else reference.device
    try:
        module = copy.deepcopy(model).to(device=device, dtype=dtype)
    except RuntimeError as error:  # deepcopy of a module that holds non-leaf tensors
        raise UnsupportedModelError(
            f"a {type(model).__name__} that cannot be copied ({error})",
            expected="a module that copy.deepcopy takes",
            hint="replace torch.nn.utils.weight_norm by torch.nn.utils.parametrizations.weight_norm",
        ) from error
    if evaluation:
        module.eval()
    named = dict(module.named_parameters())
    wanted = [name for name, p in named.items() if p.requires_grad] if parameters is None else list(parameters)
    unknown = [name for name in wanted if name not in named]
    if unknown or not wanted:
        raise InputError(
            f"parameters {unknown or wanted}",
            expected=f"names among {', '.join(list(named)[:8])}{', ...' if len(named) > 8 else ''}",
            hint="take them from model.named_parameters(); with parameters=None at least one must require grad",
        )
    for name, parameter in named.items():
        parameter.requires_grad_(name in wanted)
    selected = {name: parameter for name, parameter in named.items() if name in set(wanted)}
    prepared = PreparedModel(module, forward or (lambda m, batch: m(batch)), selected, dtype, device)
    return _probed(prepared, rows)


def check_rows(prepared: PreparedModel, rows: Rows) -> None:
    """Refuse other rows than those that the model was prepared on, where it does not take them.

    Raises:
        InputError: their shape or dtype does not fit the model, or they get another number of outputs.
    """
    found = _probed(prepared, rows).n_outputs
    if found != prepared.n_outputs:
        raise InputError(
            f"rows with {found} outputs beside rows with {prepared.n_outputs}",
            expected="rows of one kind",
            hint="check the shape of y",
        )


def _probed(prepared: PreparedModel, rows: Rows) -> PreparedModel:
    """Learn C, and see that two runs on the same rows agree."""
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
            f"rows of shape {shapes} that the model does not take ({error})",
            expected="inputs that model(x) accepts",
            hint="check the shape and dtype of the inputs, or pass forward=",
        ) from error
    if not torch.equal(first, second) and not bool((first.isnan() & second.isnan()).any()):
        raise UnsupportedModelError(
            "a model whose two runs on the same rows differ",
            expected="a deterministic model",
            hint="call model.eval(), and remove functional dropout or sampling from its forward pass",
        )
    return PreparedModel(
        prepared.module,
        prepared.forward,
        prepared.parameters,
        prepared.dtype,
        prepared.device,
        first.shape[1],
    )


def check_eval_mode(model: nn.Module) -> None:
    """Raise where an example's output depends on other rows of its batch, or on chance."""
    for name, module in model.named_modules():
        batch_statistics = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
        if not module.training and not batch_statistics:
            continue
        dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        recurrent = isinstance(module, nn.RNNBase) and module.dropout > 0 and module.num_layers > 1
        attention = isinstance(module, nn.MultiheadAttention) and module.dropout > 0
        normalization = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if dropout or recurrent or attention or normalization:
            what = "mixes the rows of a batch" if normalization else "drops units at random"
            raise UnsupportedModelError(
                f"module {name or '(root)'!r} ({type(module).__name__})"
                f" {'in training mode' if module.training else 'without running statistics'}, which {what}",
                expected="a model in which an example's output depends on that example alone",
                hint="call model.eval() first (and model.train() after it, if training goes on)",
            )
