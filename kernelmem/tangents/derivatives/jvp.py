r"""Jacobian products J u and Jᵀ w of a batch, for any module, without forming J.

Two modes for J u (Jᵀ w is always a backward pass):

- **reverse**: Jᵀ w is linear in w, so J u is its gradient, ∂⟨Jᵀ w, u⟩/∂w. The graph of Jᵀ w is built once per
  batch and serves every u: 2 matrix products per layer and u. It differentiates the parameter objects themselves, and
  so follows weights however the forward pass accesses them.
- **forward**: dual numbers through the forward pass: 3 matrix products per layer and u, no graph. Twice as fast for
  convolutions, whose double backward also computes gradients that are not needed.

Source: double backward: Townsend 2017; dual numbers: Wengert 1964; Pearlmutter 1994.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernelmem.core.batches import Batch, Rows
from kernelmem.core.errors import NumericalError, UnsupportedModelError, VerificationError
from kernelmem.core.models.torch_func import GLOBAL_STATE, functional_call, standard_modes
from kernelmem.core.models.torch_func import jvp as dual_jvp
from kernelmem.tangents.derivatives.jacobian import BoundModel, outputs_of_row
from kernelmem.tangents.prepare import PreparedModel

Tangents = dict[str, Tensor]  # parameter name -> tensor of the parameter's shape
JvpMode = Literal["reverse", "forward"]

TINY = 1e-300  # avoids 0 / 0 in relative errors


def vjp(prepared: PreparedModel, batch: Batch, n: int, cotangents: Tensor) -> Tangents:
    """Compute Jᵀ w = Σ_nc w_nc ∂f_c(x_n)/∂θ for w = ``cotangents`` (n examples, C outputs), one tensor per parameter.

    Cost: one forward and one backward pass.
    """
    return Linearized(prepared, batch, n).vjp(cotangents)


def jvp(prepared: PreparedModel, batch: Batch, n: int, tangents: Tangents, *, mode: JvpMode = "reverse") -> Tensor:
    """Compute (J u)_nc = Σ_p u_p ∂f_c(x_n)/∂θ_p, shape (n examples, C outputs), for u = ``tangents``, one per parameter."""
    return Linearized(prepared, batch, n, mode=mode).jvp(tangents)


class Linearized:
    """The derivative of a prepared model at one batch of n rows, for many products.

    Cost: one forward pass at the first product; a backward pass per ``vjp``; for ``jvp`` see the two modes above.
    Memory: the graph of the forward pass, and in reverse mode after the first ``jvp`` that of one backward pass. With
    ``keep_graph`` the first ``vjp`` keeps that second graph, which saves a backward pass if ``jvp`` follows.
    """

    def __init__(
        self, prepared: PreparedModel, batch: Batch, n: int, *, mode: JvpMode = "reverse", keep_graph: bool = False
    ) -> None:
        self.prepared, self.batch, self.n, self.mode, self.keep_graph = prepared, batch, n, mode, keep_graph
        self._vjp_graph: tuple[Tensor, dict[str, GradientEdge]] | None = None  # w, and Jᵀ w as its graph
        self._outputs: Tensor | None = None

    def vjp(self, cotangents: Tensor) -> Tangents:
        """Compute Jᵀ w, one tensor per selected parameter, for ``cotangents`` w (n examples, C outputs)."""
        with differentiable_kernels():
            if self.keep_graph and self.mode == "reverse" and self._vjp_graph is None:
                return {name: g.detach() for name, g in self._vjp_with_graph(cotangents).items()}
            return self._parameter_gradients(cotangents, create_graph=False)

    def jvp(self, tangents: Tangents) -> Tensor:
        """Compute J u, (n examples, C outputs), for ``tangents`` u, one tensor per selected parameter."""
        with differentiable_kernels():
            compute = self._jvp_by_dual_numbers if self.mode == "forward" else self._jvp_by_double_backward
            return compute(tangents)

    def _cached_outputs(self) -> Tensor:
        if self._outputs is None:
            self._outputs = self.prepared.outputs(self.batch, self.n)
        return self._outputs

    def _parameter_gradients(self, cotangents: Tensor, *, create_graph: bool) -> Tangents:
        """Compute Jᵀ w for ``cotangents`` w (n examples, C outputs) by one backward pass, one tensor per selected parameter.

        With ``create_graph`` the result can be differentiated with respect to w.
        """
        outputs = self._cached_outputs()
        parameters = self.prepared.parameters
        if not outputs.requires_grad:
            return {name: torch.zeros_like(p) for name, p in parameters.items()}
        gradients = torch.autograd.grad(
            outputs,
            list(parameters.values()),
            cotangents,
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
        dense = (g if g.layout == torch.strided else g.to_dense() for g in gradients)  # sparse embeddings
        return dict(zip(parameters, dense, strict=True))

    def _vjp_with_graph(self, cotangents: Tensor) -> Tangents:
        """Compute Jᵀ w and keep its graph for products J u; those do not depend on w, because Jᵀ w is linear in w."""
        w = cotangents.detach().clone().requires_grad_()
        gradients = self._parameter_gradients(w, create_graph=True)
        # Keep the edges, not the tensors: the values of Jᵀ w (P numbers) can be freed before the graph.
        self._vjp_graph = w, {name: get_gradient_edge(g) for name, g in gradients.items() if g.requires_grad}
        return gradients

    def _jvp_by_double_backward(self, tangents: Tangents) -> Tensor:
        """Compute J u, (n examples, C outputs), as the gradient of ⟨Jᵀ w, u⟩ with respect to w, for u = ``tangents``."""
        if self._vjp_graph is None:
            self._vjp_with_graph(torch.zeros_like(self._cached_outputs()))
        assert self._vjp_graph is not None
        w, edges = self._vjp_graph
        if not edges:  # the outputs depend on none of the selected parameters
            return torch.zeros_like(w)
        u = [tangents[name] for name in edges]
        (result,) = torch.autograd.grad(
            list(edges.values()), w, u, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return result

    def _jvp_by_dual_numbers(self, tangents: Tangents) -> Tensor:
        """Compute J u, (n examples, C outputs), by a forward pass with dual numbers, for u = ``tangents``."""
        load_dual_rules()
        bound = BoundModel(self.prepared.module, self.prepared.outputs)
        primals = {f"module.{name}": p.detach() for name, p in self.prepared.parameters.items()}
        duals = {f"module.{name}": u for name, u in tangents.items()}

        def outputs(values: dict[str, Tensor]) -> Tensor:
            return functional_call(bound, values, (self.batch, self.n))

        with torch.no_grad():  # a graph is not needed and would take memory
            return dual_jvp(outputs, (primals,), (duals,))[1]


@cache
def load_dual_rules() -> None:
    """Create a first dual number, which makes torch compile its rules by torch.jit, without the deprecation warning."""
    with GLOBAL_STATE, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        with torch.autograd.forward_ad.dual_level():
            torch.autograd.forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Enter a context in which operations can be differentiated twice and by dual numbers; flags are restored on exit.

    Fused attention has a first derivative only, the fused TransformerEncoder layer none. Autocast would compute
    products in half precision. Threads take turns: the flags and the level of forward differentiation are one per process.
    """
    with GLOBAL_STATE, ExitStack() as stack:
        fastpath_enabled = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fastpath_enabled)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(standard_modes())
        stack.enter_context(torch.enable_grad())
        yield


def choose_mode(prepared: PreparedModel, rows: Rows) -> JvpMode:
    """Choose a mode of J u that is correct for this model, by comparison with the definition on two rows.

    The definition runs each row in a batch of its own, with one backward pass and the model's own (fused) operations.
    Compared with it are Jᵀ w of both rows in one batch, and ⟨w, J u⟩ = ⟨Jᵀ w, u⟩ for a u near Jᵀ w, so that each
    parameter has the same weight in the check as in the kernel. Forward mode is tried first for models with
    convolutions, reverse mode for others; timings play no role, so that results are reproducible.

    Raises:
        UnsupportedModelError: neither mode supports the model.
        VerificationError: a batch differs from its rows (a model that mixes the rows of a batch).
        NumericalError: tangents that are NaN or infinite.
    """
    rows = rows.to(dtype=prepared.dtype, device=prepared.device)
    indices = [0, rows.n - 1]
    generator = torch.Generator().manual_seed(0)  # local: the user's random state is not changed
    w = torch.randn(2, prepared.n_outputs, generator=generator, dtype=prepared.dtype).to(prepared.device)
    expected_gradients, expected_norm = _rowwise_vjp(prepared, rows, indices, w)
    if not math.isfinite(expected_norm):
        raise NumericalError(
            "a model whose parameter derivatives are NaN or infinite on the first or last row",
            expected="finite derivatives",
            hint="check the weights (a diverged run?) and the scale of the inputs",
        )
    u = {
        name: torch.rand(gradient.shape, generator=generator, dtype=gradient.dtype).to(gradient.device)
        for name, gradient in expected_gradients.items()
    }
    for name, gradient in expected_gradients.items():
        u[name].add_(0.5).mul_(gradient)
    expected_inner_product = sum(_inner_product(gradient, u[name]) for name, gradient in expected_gradients.items())
    scale = max(expected_norm * sum(_inner_product(direction, direction) for direction in u.values()) ** 0.5, TINY)
    tolerance = prepared.tolerance(1e-3, 1e-9)
    batch = rows.take(indices)
    batched_gradients = Linearized(prepared, batch, 2).vjp(w)
    differences = (batched_gradients[name] - gradient for name, gradient in expected_gradients.items())
    batch_error = sum(float(difference.norm(dtype=torch.float64)) ** 2 for difference in differences) ** 0.5
    del batched_gradients
    if not batch_error <= tolerance * max(expected_norm, TINY):
        raise VerificationError(
            f"a model whose derivatives on 2 rows in one batch differ from the row-by-row definition by"
            f" {batch_error / max(expected_norm, TINY):.2g} (relative)",
            expected=f"a difference of at most {tolerance:g}",
            hint="check that no operation mixes the rows of a batch (batch statistics, shuffling, attention over rows)",
        )
    has_convolutions = any(isinstance(module, nn.modules.conv._ConvNd) for module in prepared.module.modules())
    modes: tuple[JvpMode, JvpMode] = ("forward", "reverse") if has_convolutions else ("reverse", "forward")
    problems: list[str] = []
    for mode in modes:
        try:
            inner_product = float((Linearized(prepared, batch, 2, mode=mode).jvp(u) * w).sum(dtype=torch.float64))
        except Exception as error:  # autograd raises many types, also from the user's module
            problems.append(f"{mode} mode: {(str(error) or type(error).__name__).splitlines()[0]}")
            continue
        # A once-differentiable custom function does not raise in reverse mode: its part of the graph is lost.
        if abs(inner_product - expected_inner_product) <= tolerance * scale:
            return mode
        problems.append(
            f"{mode} mode: J u has relative error {abs(inner_product - expected_inner_product) / scale:.2g}"
        )
    raise _unsupported_error(problems)


def _rowwise_vjp(prepared: PreparedModel, rows: Rows, indices: list[int], w: Tensor) -> tuple[Tangents, float]:
    """Compute Jᵀ w with each example in a batch of its own.

    Returns Σ_n J_nᵀ w_n, one tensor per parameter, and (Σ_n |J_nᵀ w_n|²)^½, over the examples n in ``indices``; J_n are the
    derivatives of the outputs of example n, and w_n is its row of ``w``.
    """
    parameters = prepared.parameters
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    squares = 0.0
    with standard_modes(), torch.enable_grad():
        for position, row_index in enumerate(indices):
            outputs = outputs_of_row(prepared, rows.slice(row_index, row_index + 1))[None]
            if not outputs.requires_grad:
                continue
            try:
                gradients = torch.autograd.grad(
                    outputs,
                    list(parameters.values()),
                    w[position : position + 1],
                    allow_unused=True,
                    materialize_grads=True,
                )
            except RuntimeError as error:
                raise _unsupported_error([f"backward: {str(error).splitlines()[0]}"]) from error
            for name, gradient in zip(parameters, gradients, strict=True):
                total[name] += gradient
                squares += float(gradient.to_dense().norm(dtype=torch.float64)) ** 2
    return total, squares**0.5


def _unsupported_error(problems: list[str]) -> UnsupportedModelError:
    """Return the error for a model whose products J u no mode computes; ``problems`` gives the reason per mode."""
    return UnsupportedModelError(
        f"a model whose products J u cannot be computed ({'; '.join(problems)})",
        expected="operations with a second derivative or a forward-mode rule, and no tensor changed in place"
        " that backward needs",
        hint="form the kernel with km.ntk, which needs first derivatives only, or replace the operation named here",
    )


def _inner_product(a: Tensor, b: Tensor) -> float:
    return float(torch.sum(a * b, dtype=torch.float64))
