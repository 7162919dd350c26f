"""Empirical tangent kernel as a linear operator: products K v, diagonal and trace, without forming the matrix."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from kernelmem.core.batches import Batch, Forward, Rows, as_rows
from kernelmem.core.checks import ArrayLike, as_tensor, check_choice
from kernelmem.core.errors import InputError, NumericalError
from kernelmem.core.models import saved_storages
from kernelmem.core.models.torch_func import standard_modes
from kernelmem.core.options import MEMORY, as_bytes
from kernelmem.tangents.derivatives.jacobian import vectorized_jacobian
from kernelmem.tangents.derivatives.jvp import JvpMode, Linearized, choose_mode
from kernelmem.tangents.prepare import PreparedModel, prepare

# Bytes of the graph of one chunk on a CPU. Larger chunks are not faster, and three times slower once an activation is
# larger than 32 MiB: then the C library maps and unmaps fresh pages for each tensor.
GRAPH_BYTES = 2**27

# Upper bound of resident over live memory: the C library's heap keeps the gaps between tensors of many sizes.
FRAGMENTATION = 2

MatrixOutputs = Literal["trace", "pseudo", "full"]


@standard_modes()
def ntk_operator(
    model: nn.Module,
    x: Batch,
    *,
    outputs: MatrixOutputs = "trace",
    parameters: Iterable[str] | None = None,
    forward: Forward | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    memory: int | str = MEMORY,
) -> "NTKOperator":
    r"""Return the tangent kernel K = J Jᵀ of n rows as an operator: K v = J (Jᵀ v), exactly, in O(P) memory.

    ========== ============================== ================= ==========================
    outputs    K                              shape             sweeps per product, column
    ========== ============================== ================= ==========================
    "trace"    Σ_c J_c J_cᵀ                   (n, n)            C vjp + C jvp
    "pseudo"   kernel of Σ_c f_c / √C         (n, n)            1 vjp + 1 jvp
    "full"     J Jᵀ over rows and outputs     (n·C, n·C)        1 vjp + 1 jvp
    ========== ============================== ================= ==========================

    The full kernel's row i·C + c is output c of example i, so that v is ``coefficients.reshape(-1)`` of (n, C), and
    K is ``km.ntk(..., outputs="full").transpose(1, 2).reshape(n * C, n * C)``.

    Args:
        model: any module whose ``model(x)`` is (n, C); never changed. The operator holds a copy, so that later training
            does not change it. It must be in eval mode if that changes its outputs.
        x: n rows: tensor, array, dict or tuple of them, Dataset or DataLoader.
        outputs: kind of kernel, from the table above ("diagonal" is C matrices, one per output: see ``forward``).
        parameters: names of the parameters to differentiate with respect to; None: those with requires_grad.
        forward: maps (model, batch) to (n, C) outputs, for models with other inputs or outputs.
        dtype: torch.float32 or torch.float64; None: the model's own.
        device: where to compute; None: where the model is.
        memory: bytes that the operator may allocate in addition to what is resident when this call starts, including its
            copy of the model; it determines how many rows are swept at a time.

    Returns:
        An :class:`NTKOperator`: ``op @ v``, ``op.shape``, ``op.dtype``, ``op.diagonal()``, ``op.trace()``,
        ``op.as_scipy()``.

    Raises:
        InputError: rows that the model does not accept, NaN, unknown parameters or outputs, too little memory.
        UnsupportedModelError: train-mode BatchNorm, active dropout, outputs that are not (n, C), operations with
            neither a second derivative nor a forward-mode rule.
        VerificationError: products that differ from the definition (a model that mixes the rows of a batch).
        NumericalError: derivatives that are NaN or infinite.

    Cost: a sweep is 2 to 3 forward passes over the n rows, and a trace product 4C to 6C of them. Forming K with km.ntk
    is cheaper if K fits in memory and more than a few products are needed; the operator is for larger n or P. Memory:
    5 P and the graph of one chunk of rows, never n x P.

    Source: Jacot, Gabriel, Hongler 2018; products by one vjp and one jvp: Schraudolph 2002 (for the Gauss-Newton
    matrix Jᵀ J), Novak, Sohl-Dickstein, Schoenholz 2022.

    >>> model = nn.Linear(2, 3)
    >>> op = ntk_operator(model, torch.tensor([[1.0, 0.0], [0.0, 2.0]]))  # linear model: K = C (x·x' + 1)
    >>> op @ torch.tensor([1.0, 1.0])
    tensor([ 9., 18.])
    >>> op.diagonal(), op.trace()
    (tensor([ 6., 15.]), 21.0)
    """
    hint = "for the kernel of output c pass forward=lambda model, batch: model(batch)[:, c : c + 1]"
    check_choice(outputs, "outputs", ("trace", "pseudo", "full"), hint=hint)
    max_bytes = as_bytes(memory)
    rows = as_rows(x, "x")
    prepared = prepare(model, rows, forward=forward, parameters=parameters, dtype=dtype, device=device)
    rows = rows.to(dtype=prepared.dtype, device=prepared.device)
    n_outputs = prepared.n_outputs
    if outputs == "pseudo":  # the trace kernel of one output
        prepared = dataclasses.replace(prepared, forward=_pseudo_output(prepared), n_outputs=1)
    mode = choose_mode(prepared, rows)
    return NTKOperator(rows.n, n_outputs, outputs, prepared, rows, _Plan.build(prepared, rows, mode, max_bytes))


@dataclass(frozen=True, eq=False)
class NTKOperator:
    """Tangent kernel as a linear operator, from :func:`ntk_operator`."""

    n: int
    n_outputs: int
    outputs: MatrixOutputs
    _prepared: PreparedModel
    _rows: Rows
    _plan: "_Plan"

    def __repr__(self) -> str:
        return (
            f"NTKOperator({self.outputs} kernel of {self.n} rows, shape {self.shape}, {self.dtype}, "
            f"{self._prepared.n_parameters} parameters, {self._plan})"
        )

    def __copy__(self) -> "NTKOperator":
        return self  # it never changes

    def __deepcopy__(self, memo: dict[int, object]) -> "NTKOperator":
        return self

    def __reduce__(self):
        raise InputError(
            "an NTKOperator to be pickled",
            expected="an operator that stays in its process",
            hint="send the model and the rows, and call km.ntk_operator in the other process",
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of K: (n, n), or (n·C, n·C) for the full kernel."""
        size = self.n * self.n_outputs if self.outputs == "full" else self.n
        return size, size

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of K, of the vectors it is multiplied with, and of the products."""
        return self._prepared.dtype

    @property
    def device(self) -> torch.device:
        """Device on which products are computed and returned."""
        return self._prepared.device

    @standard_modes()
    def __matmul__(self, v: ArrayLike) -> Tensor:
        """Compute K v for v (N,), or K V for V (N, k), N = ``shape[0]``: a tensor or array in the operator's dtype.

        Columns are computed one after another: k columns cost k times one.

        Raises:
            InputError: another length or dtype, NaN or infinite values.
            NumericalError: a result that is not finite.
        """
        vectors = as_tensor(v, "v")
        if vectors.ndim not in (1, 2) or vectors.shape[0] != self.shape[0] or vectors.dtype != self.dtype:
            raise InputError(
                f"v of shape {tuple(vectors.shape)} and dtype {vectors.dtype}",
                expected=f"shape ({self.shape[0]},) or ({self.shape[0]}, k) and dtype {self.dtype}",
                hint="convert it with v.to(op.dtype)"
                + ("; flatten coefficients (n, C) with reshape(-1)" if self.outputs == "full" else ""),
            )
        columns = 1 if vectors.ndim == 1 else vectors.shape[1]
        values = vectors.to(self.device).reshape(self.n, self.shape[0] // self.n, columns)
        result = self._multiply(values).reshape(vectors.shape)
        if not bool(torch.isfinite(result).all()):
            raise NumericalError(
                "a product K v with NaN or infinite values",
                expected="finite derivatives on every row",
                hint="check the weights (a diverged run?), or pass dtype=torch.float64 if they overflow",
            )
        return result

    @standard_modes()
    def diagonal(self) -> Tensor:
        """Compute the diagonal K_nn = |J_n|² exactly, (n,); for the full kernel (n·C,), in its order.

        Cost: nC backward passes (n for "pseudo"); memory within the operator's limit, never n x P.
        """
        squares = _squared_norms(self._prepared, self._rows, self._plan.spare_bytes)  # (n, C)
        return squares.reshape(-1) if self.outputs == "full" else squares.sum(1)

    def trace(self) -> float:
        """Compute Σ_n K_nn exactly, at the cost of the diagonal."""
        return float(self.diagonal().sum(dtype=torch.float64))

    def as_scipy(self) -> LinearOperator:
        """Return a symmetric ``scipy.sparse.linalg.LinearOperator``, e.g. for eigsh, cg and lobpcg.

        Vectors are NumPy arrays in any precision; they are converted to the operator's dtype and back.

        >>> from scipy.sparse.linalg import cg
        >>> op = ntk_operator(nn.Linear(1, 1).double(), torch.eye(2)[:, :1])  # K = [[2, 1], [1, 1]]
        >>> cg(op.as_scipy(), np.array([3.0, 2.0]))[0].round(6).tolist()
        [1.0, 1.0]
        """

        def apply(v: np.ndarray) -> np.ndarray:
            vectors = np.asarray(v)
            if np.iscomplexobj(vectors):
                raise InputError(
                    "a complex v", expected="a real v", hint="multiply its real and imaginary part separately"
                )
            return (self @ torch.tensor(vectors, dtype=self.dtype)).cpu().numpy()

        dtype = np.float32 if self.dtype == torch.float32 else np.float64
        products = {"matvec": apply, "rmatvec": apply, "matmat": apply, "rmatmat": apply}
        return LinearOperator(self.shape, dtype=dtype, **products)  # type: ignore[call-arg]  # the stub has no keywords

    def _multiply(self, v: Tensor) -> Tensor:
        """Compute K v = J (Jᵀ v) for k vectors v (n examples, C outputs or 1, k), and return it in the same shape.

        The sum Jᵀ v is formed over all chunks of examples before the products with J.
        """
        result = torch.zeros_like(v)
        size = self._plan.rows_per_chunk
        chunks = [(start, min(start + size, self.n)) for start in range(0, self.n, size)]
        # One value per output is one direction; one value per row (trace kernel) is one direction per output.
        outputs: list[int | None] = [None] if v.shape[1] == self._prepared.n_outputs else [*range(self.n_outputs)]
        directions = [(column, output_index) for column in range(v.shape[2]) for output_index in outputs]
        linearized_chunks = [self._linearize(*chunk) for chunk in chunks] if self._plan.keep_graphs else None
        parameters = self._prepared.parameters
        group_size = max(1, min(self._plan.directions_per_pass, len(directions)))
        parameter_vectors = [
            {name: torch.empty_like(p) for name, p in parameters.items()} for _ in range(group_size)
        ]  # Jᵀ v of each direction
        for first in range(0, len(directions), group_size):
            direction_group = directions[first : first + group_size]
            for u in parameter_vectors:  # gradients are added to zeros: they may be views of the cotangent
                for tensor in u.values():
                    tensor.zero_()
            for chunk_index, (start, stop) in enumerate(chunks):
                linearized = linearized_chunks[chunk_index] if linearized_chunks else self._linearize(start, stop)
                for u, (column, output_index) in zip(parameter_vectors, direction_group, strict=False):
                    cotangents = self._cotangents(v[start:stop, :, column], output_index)
                    for name, gradient in linearized.vjp(cotangents).items():
                        u[name] += gradient
            for chunk_index, (start, stop) in enumerate(chunks):
                linearized = linearized_chunks[chunk_index] if linearized_chunks else self._linearize(start, stop)
                for u, (column, output_index) in zip(parameter_vectors, direction_group, strict=False):
                    columns = slice(None) if output_index is None else slice(output_index, output_index + 1)
                    result[start:stop, :, column] += linearized.jvp(u)[:, columns]
        return result

    def _linearize(self, start: int, stop: int) -> Linearized:
        """Return the derivative of the model at the examples start..stop (exclusive)."""
        batch = self._rows.slice(start, stop)
        return Linearized(self._prepared, batch, stop - start, mode=self._plan.mode, keep_graph=self._plan.keep_graphs)

    def _cotangents(self, v: Tensor, output_index: int | None) -> Tensor:
        """Return cotangents (n examples, C outputs): v itself, or v (n, 1) in column ``output_index`` and 0 elsewhere."""
        if output_index is None:
            return v
        cotangents = v.new_zeros(len(v), self._prepared.n_outputs)
        cotangents[:, output_index] = v[:, 0]
        return cotangents


def _pseudo_output(prepared: PreparedModel) -> Forward:
    """Return a forward function with the single output Σ_c f_c / √C, where f are the C outputs of the model."""
    scale = prepared.n_outputs**-0.5
    return lambda module, batch: prepared.forward(module, batch).sum(1, keepdim=True) * scale


@dataclass(frozen=True)
class _Plan:
    """Number of examples per chunk, and which graphs are kept, so that the computation fits in memory."""

    mode: JvpMode  # how J u is computed
    rows_per_chunk: int  # rows of one autograd graph
    keep_graphs: bool  # whether the graphs of all chunks stay in memory for all products
    directions_per_pass: int  # directions that share each graph if graphs are not kept; each needs a vector Jᵀ v
    spare_bytes: int  # bytes available in addition to the copy of the model

    @classmethod
    def build(cls, prepared: PreparedModel, rows: Rows, mode: JvpMode, max_bytes: int) -> "_Plan":
        """Choose the number of examples per chunk, and whether graphs are kept, within ``max_bytes`` bytes."""
        copy_bytes = sum(t.nbytes for t in (*prepared.module.parameters(), *prepared.module.buffers()))
        vector_bytes = sum(p.nbytes for p in prepared.parameters.values())
        row_bytes, fixed_bytes = _graph_bytes(prepared, rows, mode)
        # Three vectors of P: Jᵀ v, the gradient added to it, and the one that the next backward pass allocates.
        spare_bytes = max_bytes - copy_bytes - 3 * vector_bytes - fixed_bytes
        if spare_bytes < row_bytes:
            raise InputError(
                f"memory of {max_bytes / 2**20:.1f} MiB for {prepared.n_parameters} parameters"
                f" and {row_bytes / 2**20:.2f} MiB of activations per row",
                expected=f"at least {(max_bytes - spare_bytes + row_bytes) / 2**20:.1f} MiB: the copy of the model,"
                " three vectors of its parameters, the graph of one row",
                hint="raise memory=, or choose fewer parameters=",
            )
        graph_bytes = GRAPH_BYTES if prepared.device.type == "cpu" else spare_bytes
        if rows.n * row_bytes <= spare_bytes:
            return cls(mode, min(rows.n, max(1, int(graph_bytes // row_bytes))), True, 1, max_bytes - copy_bytes)
        directions_per_pass = max(1, int(spare_bytes / 2 // (FRAGMENTATION * vector_bytes)))
        remaining_bytes = spare_bytes - (directions_per_pass - 1) * FRAGMENTATION * vector_bytes
        return cls(
            mode,
            max(1, int(min(graph_bytes, remaining_bytes) // row_bytes)),
            False,
            directions_per_pass,
            max_bytes - copy_bytes,
        )


def _graph_bytes(prepared: PreparedModel, rows: Rows, mode: JvpMode) -> tuple[float, float]:
    """Return the bytes per example and the fixed bytes that autograd keeps for a chunk, doubled for temporaries."""
    parameter_pointers = {
        t.untyped_storage().data_ptr() for t in (*prepared.module.parameters(), *prepared.module.buffers())
    }

    def saved_bytes(n: int) -> int:
        """Measure the bytes that autograd saves for n rows, without the parameters."""
        batch = rows.take([i % rows.n for i in range(n)])
        ones = torch.ones(n, prepared.n_outputs, dtype=prepared.dtype, device=prepared.device)
        _, storages = saved_storages(lambda: Linearized(prepared, batch, n, mode=mode, keep_graph=True).vjp(ones))
        return sum(size for pointer, (size, _) in storages.items() if pointer not in parameter_pointers)

    bytes_of_two_rows, bytes_of_six_rows = saved_bytes(2), saved_bytes(6)
    row_bytes = max(
        (bytes_of_six_rows - bytes_of_two_rows) / 4, prepared.n_outputs * torch.finfo(prepared.dtype).bits / 8
    )
    return 2 * FRAGMENTATION * row_bytes, max(0.0, bytes_of_two_rows - 2 * row_bytes)


def _squared_norms(prepared: PreparedModel, rows: Rows, max_bytes: int) -> Tensor:
    """Compute |∂f_c(x_n)/∂θ|² of each row and output, (n, C), with at most ``max_bytes`` bytes of Jacobian at a time."""
    names = list(prepared.parameters)
    row_bytes = (
        3 * prepared.n_outputs * sum(p.nbytes for p in prepared.parameters.values())
    )  # the Jacobian, its copy in torch.cat, and the temporaries of vmap
    rows_per_chunk = int(max_bytes // row_bytes)
    if rows_per_chunk and _supports_vectorized_jacobian(prepared, rows, names):
        blocks = []
        for start in range(0, rows.n, rows_per_chunk):
            stop = min(start + rows_per_chunk, rows.n)
            jacobian = vectorized_jacobian(prepared, rows.slice(start, stop), names, _one_hot(prepared, stop - start))
            blocks.append(torch.einsum("ncp,ncp->nc", jacobian, jacobian))
        return torch.cat(blocks)
    return torch.stack([_squared_norms_of_row(prepared, rows.slice(i, i + 1)) for i in range(rows.n)])


def _one_hot(prepared: PreparedModel, n: int) -> Tensor:
    C = prepared.n_outputs
    return torch.eye(C, dtype=prepared.dtype, device=prepared.device).expand(n, C, C)


def _supports_vectorized_jacobian(prepared: PreparedModel, rows: Rows, names: list[str]) -> bool:
    """Return True if torch.func supports this model and agrees with autograd on one row."""
    try:
        squares = vectorized_jacobian(prepared, rows.slice(0, 1), names, _one_hot(prepared, 1))[0].norm(dim=1) ** 2
    except Exception:  # vmap and jacrev raise many types, also from the user's module
        return False
    expected = _squared_norms_of_row(prepared, rows.slice(0, 1))
    tolerance = prepared.tolerance(1e-3, 1e-9)
    return bool((squares - expected).norm() <= tolerance * expected.norm())


def _squared_norms_of_row(prepared: PreparedModel, row: Batch) -> Tensor:
    """Compute |∂f_c(x)/∂θ|² of one example x, (C outputs,), by one backward pass per output."""
    with torch.enable_grad():
        outputs = prepared.outputs(row, 1)[0]
        squares = torch.zeros_like(outputs)
        if outputs.requires_grad:
            for output_index in range(len(outputs)):
                gradients = torch.autograd.grad(
                    outputs[output_index], list(prepared.parameters.values()), retain_graph=True, allow_unused=True
                )
                squares[output_index] = sum(
                    float(g.to_dense().norm(dtype=torch.float64)) ** 2 for g in gradients if g is not None
                )
    return squares.detach()
