"""Prepared models: a private copy with the selected parameters, its outputs, and the checks of both."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Batch, Forward, Rows, check_outputs, input_hint, named_leaves
from kernelmem.core.checks import as_device, as_float_dtype, as_names, check_callable, check_model
from kernelmem.core.errors import InputError, KernelmemError, NumericalError, UnsupportedModelError
from kernelmem.core.models import (
    PassObserver,
    ignored_autocast,
    plain_execution,
    private_copy,
    refuse_detached_segments,
    replace_complex_parameters,
)
from kernelmem.tangents.prepare.evaluation_mode import check_eval_mode
from kernelmem.tangents.prepare.graph import graph_leaves

ROWS_PER_CHECK = 64  # examples of a pass that looks for parameters on the graph


@dataclass(frozen=True)
class PreparedModel:
    """A private copy of a model, in which exactly the selected parameters require gradients."""

    module: nn.Module
    forward: Forward
    parameters: dict[str, nn.Parameter]  # name (the first, if tied) -> parameter of the copy, (..., 2) if it is complex
    dtype: torch.dtype
    device: torch.device
    n_outputs: int = 0
    differentiates: bool = False  # whether the forward pass itself needs gradients (forces, differential equations)
    precision: torch.dtype = torch.float64  # the narrowest in which it computes, as far as the parameters matter
    unused: tuple[str, ...] = ()  # selected parameters on which the outputs of the first rows do not depend

    def outputs(self, batch: Batch, n: int) -> Tensor:
        """Run the model on a batch of n rows and check that the result is (n, C).

        Raises:
            UnsupportedModelError: the result is not a tensor of real numbers of shape (n, C).
            NumericalError: an output is NaN; the message names the rows. (Infinite outputs, of a mask, have tangents.)
        """
        needs_gradients = torch.is_grad_enabled()
        with ExitStack() as stack:
            stack.enter_context(plain_execution(self.device))
            if self.differentiates:
                stack.enter_context(torch.enable_grad())
            result = self.forward(self.module, batch)
        result = check_outputs(result, n)
        nan_rows = result.detach().isnan().any(1).nonzero()[:, 0].tolist()
        if nan_rows:
            raise NumericalError(
                f"a model with NaN outputs for {len(nan_rows)} rows in a batch of {n} (the first: row {nan_rows[0]})",
                expected="outputs that are numbers",
                hint="check these rows and the weights (a diverged run?)",
            )
        result = result.to(self.dtype)  # some models end in float32 whatever their dtype
        return result if needs_gradients or not self.differentiates else result.detach()

    def tolerance(self, in_float32: float, in_float64: float) -> float:
        """Return the relative difference that rounding explains, by the precision in which the model computes.

        Raises:
            UnsupportedModelError: parts of the model compute in half precision.
        """
        if self.precision not in (torch.float32, torch.float64):
            raise UnsupportedModelError(
                f"a model that computes in {self.precision} inside".replace("torch.", ""),
                expected="float32 or float64: tangents in half precision cannot be compared with their definition",
                hint="remove .half() and .bfloat16() from the forward pass, or pass verify=False to km.ntk",
            )
        return in_float32 if torch.float32 in (self.precision, self.dtype) else in_float64

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
        UnsupportedModelError: train-mode BatchNorm, active dropout, outputs that are not (n, C), not deterministic, or do
            not depend on the parameters; a module that cannot be copied.
        InputError: unknown parameter names, no parameters, a dtype other than float32 and float64, a device that is
            not there.
    """
    check_model(model)
    names = as_names(parameters, "parameters")
    if forward is not None:
        check_callable(forward, "forward", ("model", "batch"))
    if not evaluation:
        check_eval_mode(model)
    first_parameter = next((p for p in model.parameters() if p.is_floating_point() or p.is_complex()), None)
    if first_parameter is None:
        raise InputError(
            "a model without floating-point parameters",
            expected="parameters",
            hint="pass a model with at least one floating-point parameter (quantized weights are not parameters)",
        )
    dtype = as_float_dtype(first_parameter.dtype.to_real() if dtype is None else dtype)
    device = first_parameter.device if device is None else as_device(device)
    module = private_copy(model, dtype=dtype, device=device)
    if evaluation:
        module.eval()
    prepared = PreparedModel(
        module, forward or (lambda m, batch: m(batch)), _select_parameters(module, names), dtype, device
    )
    with ExitStack() as stack:
        if names is None:  # otherwise the inputs of a segment may depend on parameters that are not selected
            stack.enter_context(refuse_detached_segments())
        outputs, observer = _probe_outputs(prepared, rows)
    prepared = replace(prepared, n_outputs=outputs.shape[1], differentiates=observer.differentiates)
    return replace(prepared, precision=observer.precision or dtype, unused=_unused_parameters(prepared, outputs, rows))


def _select_parameters(module: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Parameter]:
    """Let exactly the parameters with these names require gradients, and return them in the order of the module.

    None selects those that require gradients.

    Raises:
        InputError: an unknown name, a parameter of integers, or no name.
    """
    parameter_of_name = dict(module.named_parameters())
    selected_names = (
        [name for name, p in parameter_of_name.items() if p.requires_grad] if names is None else list(names)
    )
    invalid_names = [
        name
        for name in selected_names
        if name not in parameter_of_name
        or not (parameter_of_name[name].is_floating_point() or parameter_of_name[name].is_complex())
    ]
    if invalid_names or not selected_names:
        raise InputError(
            f"parameters {invalid_names or selected_names}",
            expected=f"names among {', '.join(list(parameter_of_name)[:8])}{', ...' if len(parameter_of_name) > 8 else ''}",
            hint="use names of floating-point model.named_parameters(); with parameters=None at least one must require grad",
        )
    for name, parameter in parameter_of_name.items():
        parameter.requires_grad_(name in selected_names)
    selected = {name: parameter for name, parameter in parameter_of_name.items() if parameter.requires_grad}
    complex_names = {name for name, parameter in selected.items() if parameter.is_complex()}
    return selected | replace_complex_parameters(module, complex_names)


def check_rows(prepared: PreparedModel, rows: Rows) -> None:
    """Check that the model accepts other rows than those it was prepared on.

    Raises:
        InputError: the model does not accept their shape or dtype, or returns a different number of outputs.
    """
    n_outputs = _probe_outputs(prepared, rows)[0].shape[1]
    if n_outputs != prepared.n_outputs:
        raise InputError(
            f"rows x with {prepared.n_outputs} outputs and rows y with {n_outputs}",
            expected="the same number of outputs for x and y",
            hint="check the shape of y",
        )


def _probe_outputs(prepared: PreparedModel, rows: Rows) -> tuple[Tensor, PassObserver]:
    """Run the model twice on the first two rows (the only one twice), and compare the outputs.

    Returns the outputs (2, C) with their graph, and what was observed of the forward pass.

    Raises:
        InputError: the model does not accept the rows. UnsupportedModelError: the two runs differ.
    """
    batch = rows.to(dtype=prepared.dtype, device=prepared.device).take([0, min(1, rows.n - 1)])
    ignored_autocast()
    try:
        with torch.enable_grad(), PassObserver() as observer:
            first = prepared.outputs(batch, 2)
            second = prepared.outputs(batch, 2)
    except KernelmemError:
        raise
    except Exception as error:  # the user's code may raise any type
        shapes = [tuple(leaf.shape) for _, leaf in named_leaves(batch, "x")]
        raise InputError(
            f"rows of shape {shapes} that the model does not accept ({type(error).__name__}: {error})",
            expected="inputs that model(x) accepts",
            hint="autocast inside the model is ignored here: let its forward pass run without it, too"
            if ignored_autocast()
            else input_hint(batch),
        ) from error
    if not torch.equal(first, second):
        raise UnsupportedModelError(
            "a model whose two runs on the same rows differ",
            expected="a deterministic model",
            hint="call model.eval(), and remove functional dropout or sampling from its forward pass",
        )
    return first, observer


def _unused_parameters(prepared: PreparedModel, outputs: Tensor, rows: Rows) -> tuple[str, ...]:
    """Return the selected parameters that are not on the autograd graph of ``outputs``, those of the first rows.

    Raises:
        UnsupportedModelError: no output of any row depends on any of them (no_grad, detach or argmax in the forward pass).
    """

    def unused(outputs: Tensor) -> tuple[str, ...]:
        used_ids = {id(leaf) for leaf in graph_leaves(outputs)}
        return tuple(name for name, parameter in prepared.parameters.items() if id(parameter) not in used_ids)

    unused_names = unused(outputs)
    if len(unused_names) < len(prepared.parameters):
        return unused_names
    rows = rows.to(dtype=prepared.dtype, device=prepared.device)
    for start in range(0, rows.n, ROWS_PER_CHECK):
        stop = min(start + ROWS_PER_CHECK, rows.n)
        with torch.enable_grad():
            if len(unused(prepared.outputs(rows.slice(start, stop), stop - start))) < len(unused_names):
                return unused_names
    raise UnsupportedModelError(
        f"a model whose outputs depend on none of its {len(unused_names)} selected parameters, on {rows.n} rows",
        expected="outputs that can be differentiated with respect to the parameters",
        hint="use the model argument in forward=lambda model, batch: ... (a copy of your module is analyzed)"
        if graph_leaves(outputs)
        else "check the forward pass for torch.no_grad, .detach(), .data, argmax or rounding, and the names in parameters=",
    )
