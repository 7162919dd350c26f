"""The empirical tangent kernel as an operator: products K v, diagonal and trace of a matrix that is never formed."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from kernelmem.core.batches import Batch, Forward, Rows, as_rows
from kernelmem.core.checks import ArrayLike, as_tensor
from kernelmem.core.errors import InputError, NumericalError
from kernelmem.core.options import MEMORY, as_bytes
from kernelmem.tangents.derivatives.jacobian import vectorized_jacobian
from kernelmem.tangents.derivatives.jvp import JvpMode, Linearized, choose_mode
from kernelmem.tangents.prepare import PreparedModel, prepare

__all__ = ["NTKOperator", "ntk_operator"]

# Bytes of a chunk's graph on a CPU. Larger ones are no faster, and where an activation passes 32 MiB three times slower:
# from there on the C library maps and unmaps fresh pages for every tensor.
GRAPH = 2**27

# What is resident over what is live, at most: the C library's heap keeps the holes between tensors of many sizes.
HOLES = 2

MatrixOutputs = Literal["trace", "pseudo", "full"]


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
    r"""Give the tangent kernel K = J Jᵀ of n rows as an operator: K v = J (Jᵀ v), exact, in O(P) memory.

    ========== ============================== ================= ==========================
    outputs    K                              shape             sweeps a product and column
    ========== ============================== ================= ==========================
    "trace"    Σ_c J_c J_cᵀ                   (n, n)            C vjp + C jvp
    "pseudo"   kernel of Σ_c f_c / √C         (n, n)            1 vjp + 1 jvp
    "full"     J Jᵀ over rows and outputs     (n·C, n·C)        1 vjp + 1 jvp
    ========== ============================== ================= ==========================

    The full kernel's row i·C + c is output c of example i, so that v is ``weights.reshape(-1)`` of weights (n, C), and
    K is ``km.ntk(..., outputs="full").transpose(1, 2).reshape(n * C, n * C)``.

    Args:
        model: any module whose ``model(x)`` is (n, C); never changed. The operator holds a copy: later training does not
            alter it. It must be in eval mode where that matters.
        x: n rows: tensor, array, dict or tuple of them, Dataset or DataLoader.
        outputs: which of the kernels above ("diagonal" is C matrices, one an output: see ``forward``).
        parameters: names of the parameters to differentiate by; None: those with requires_grad.
        forward: maps (model, batch) to (n, C) outputs, for models with other inputs or outputs.
        dtype: torch.float32 or torch.float64; None: the model's own.
        device: where to compute; None: where the model is.
        memory: bytes that the operator may allocate above what is resident when this call starts, its copy of the model
            among them; beyond the parameters it decides how many rows a sweep takes at a time.

    Returns:
        An :class:`NTKOperator`: ``op @ v``, ``op.shape``, ``op.dtype``, ``op.diagonal()``, ``op.trace()``,
        ``op.as_scipy()``.

    Raises:
        InputError: rows the model does not take, NaN, unknown parameters or kind of outputs, too little memory.
        UnsupportedModelError: train-mode BatchNorm, active dropout, outputs that are not (n, C), operations that have
            neither a second derivative nor a forward-mode rule.
        VerificationError: products that differ from the definition (a model that mixes the rows of its batch).
        NumericalError: derivatives that are NaN or infinite.

    Cost: a sweep is 2 to 3 forward passes over the n rows. A trace product costs 4C to 6C of them, so that forming K
    with km.ntk is cheaper whenever K fits in memory and more than a few products are wanted of a network whose layers it
    factors; the operator is for n or P beyond that. Memory: 5 P and the graph of one chunk of rows; never n x P.

    Source: Jacot, Gabriel, Hongler 2018; products by one transposed and one plain sweep: Schraudolph 2002 (for the
    Gauss-Newton matrix Jᵀ J, whose other order this is), Novak, Sohl-Dickstein, Schoenholz 2022.

    >>> model = nn.Linear(2, 3)
    >>> op = ntk_operator(model, torch.tensor([[1.0, 0.0], [0.0, 2.0]]))  # linear model: K = C (x·x' + 1)
    >>> op @ torch.tensor([1.0, 1.0])
    tensor([ 9., 18.])
    >>> op.diagonal(), op.trace()
    (tensor([ 6., 15.]), 21.0)
    """
    if outputs not in ("trace", "pseudo", "full"):
        raise InputError(
            f"outputs={outputs!r}",
            expected='"trace", "pseudo" or "full", which are matrices',
            hint="for the kernel of output c alone pass forward=lambda model, batch: model(batch)[:, c : c + 1]",
        )
    limit = as_bytes(memory)
    rows = as_rows(x, "x")
    prepared = prepare(model, rows, forward=forward, parameters=parameters, dtype=dtype, device=device)
    rows = rows.to(dtype=prepared.dtype, device=prepared.device)
    n_outputs = prepared.n_outputs
    if outputs == "pseudo":  # the trace kernel of one output
        prepared = dataclasses.replace(prepared, forward=_mean_output(prepared), n_outputs=1)
    mode = choose_mode(prepared, rows)
    return NTKOperator(rows.n, n_outputs, outputs, prepared, rows, _Plan.of(prepared, rows, mode, limit))


@dataclass(frozen=True, eq=False)
class NTKOperator:
    """A tangent kernel that is known by its products. Made by :func:`ntk_operator`, which says what its parts mean."""

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

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n), or (n·C, n·C) for the full kernel."""
        size = self.n * self.n_outputs if self.outputs == "full" else self.n
        return size, size

    @property
    def dtype(self) -> torch.dtype:
        """Of K, and of the vectors it takes and gives."""
        return self._prepared.dtype

    @property
    def device(self) -> torch.device:
        """Where products are computed and returned."""
        return self._prepared.device

    def __matmul__(self, v: ArrayLike) -> Tensor:
        """Compute K v for v of shape (N,) or K V for (N, k), N = ``shape[0]``; tensor or array in the operator's dtype.

        Columns are taken one after another over the same graph: k columns cost k times one.

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
                + ("; flatten weights (n, C) with reshape(-1)" if self.outputs == "full" else ""),
            )
        columns = 1 if vectors.ndim == 1 else vectors.shape[1]
        values = vectors.to(self.device).reshape(self.n, self.shape[0] // self.n, columns)
        result = self._product(values).reshape(vectors.shape)
        if not bool(torch.isfinite(result).all()):
            raise NumericalError(
                "a product K v with NaN or infinite values",
                expected="finite derivatives on every row",
                hint="check the weights (a diverged run?), or pass dtype=torch.float64 if they overflow",
            )
        return result

    def diagonal(self) -> Tensor:
        """Compute the diagonal K_nn = |J_n|² exactly, (n,); for the full kernel (n·C,), in its order.

        Cost: nC backward passes (n for "pseudo"); memory within the operator's limit, never n x P.
        """
        squares = _squared_norms(self._prepared, self._rows, self._plan.spare)  # (n, C)
        return squares.reshape(-1) if self.outputs == "full" else squares.sum(1)

    def trace(self) -> float:
        """Compute Σ_n K_nn exactly, at the cost of the diagonal."""
        return float(self.diagonal().sum(dtype=torch.float64))

    def as_scipy(self) -> LinearOperator:
        """View as a symmetric ``scipy.sparse.linalg.LinearOperator``, for eigsh, cg, lobpcg and their like.

        Vectors are NumPy's; SciPy chooses their precision, and they are converted to the operator's dtype and back.

        >>> from scipy.sparse.linalg import cg
        >>> op = ntk_operator(nn.Linear(1, 1).double(), torch.eye(2)[:, :1])  # K = [[2, 1], [1, 1]]
        >>> cg(op.as_scipy(), np.array([3.0, 2.0]))[0].round(6).tolist()
        [1.0, 1.0]
        """

        def apply(v: np.ndarray) -> np.ndarray:
            given = np.asarray(v)
            if np.iscomplexobj(given):
                raise InputError("a complex v", expected="a real vector", hint="apply K to its two parts")
            return (self @ torch.tensor(given, dtype=self.dtype)).cpu().numpy()

        kind = np.float32 if self.dtype == torch.float32 else np.float64
        products = {"matvec": apply, "rmatvec": apply, "matmat": apply, "rmatmat": apply}
        return LinearOperator(self.shape, dtype=kind, **products)  # type: ignore[call-arg]  # the stub knows no keywords

    def _product(self, v: Tensor) -> Tensor:
        """K v for v (n, C or 1, k), in the same shape: first all of Jᵀ v, chunk by chunk, then J of it."""
        result = torch.zeros_like(v)
        chunks = [(i, min(i + self._plan.chunk, self.n)) for i in range(0, self.n, self._plan.chunk)]
        classes: list[int | None] = [None] if v.shape[1] == self._prepared.n_outputs else [*range(self.n_outputs)]
        directions = [(column, c) for column in range(v.shape[2]) for c in classes]
        kept = [self._linearize(*chunk) for chunk in chunks] if self._plan.keep else None
        parameters = self._prepared.parameters
        held = max(1, min(self._plan.group, len(directions)))
        sums = [{name: torch.empty_like(p) for name, p in parameters.items()} for _ in range(held)]  # Jᵀ v, reused
        for k in range(0, len(directions), held):
            group = directions[k : k + held]
            for u in sums:  # to add to: a gradient may be a view of the cotangent, and is not to be written on
                for tensor in u.values():
                    tensor.zero_()
            for i, (start, stop) in enumerate(chunks):
                linearized = kept[i] if kept else self._linearize(start, stop)
                for u, (column, c) in zip(sums, group, strict=False):
                    for name, part in linearized.vjp(self._lift(v[start:stop, :, column], c)).items():
                        u[name] += part
            for i, (start, stop) in enumerate(chunks):
                linearized = kept[i] if kept else self._linearize(start, stop)
                for u, (column, c) in zip(sums, group, strict=False):
                    result[start:stop, :, column] += _drop(linearized.jvp(u), c)
        return result

    def _linearize(self, start: int, stop: int) -> Linearized:
        batch = self._rows.slice(start, stop)
        return Linearized(self._prepared, batch, stop - start, mode=self._plan.mode, keep_graph=self._plan.keep)

    def _lift(self, v: Tensor, c: int | None) -> Tensor:
        """Cotangents (n, C): v itself where it has one value an output, otherwise v (n, 1) on output c alone."""
        if c is None:
            return v
        cotangents = v.new_zeros(len(v), self._prepared.n_outputs)
        cotangents[:, c] = v[:, 0]
        return cotangents


def _drop(outputs: Tensor, c: int | None) -> Tensor:
    return outputs if c is None else outputs[:, c : c + 1]


def _mean_output(prepared: PreparedModel) -> Forward:
    scale = prepared.n_outputs**-0.5
    return lambda module, batch: prepared.forward(module, batch).sum(1, keepdim=True) * scale


@dataclass(frozen=True)
class _Plan:
    """How the work is cut to fit in memory."""

    mode: JvpMode  # of J u
    chunk: int  # rows a graph
    keep: bool  # the graphs of all chunks, from Jᵀ v to J of it and from one direction to the next
    group: int  # directions whose Jᵀ v are held at once, so that a graph that is not kept serves them all
    spare: int  # bytes beyond the copy of the model

    @classmethod
    def of(cls, prepared: PreparedModel, rows: Rows, mode: JvpMode, memory: int) -> "_Plan":
        copied = sum(t.nbytes for t in (*prepared.module.parameters(), *prepared.module.buffers()))
        direction = sum(p.nbytes for p in prepared.parameters.values())
        a_row, fixed = _graph_bytes(prepared, rows, mode)
        # Jᵀ v, the gradient that is added to it, and room for the one that the next backward pass makes
        spare = memory - copied - 3 * direction - fixed
        if spare < a_row:
            raise InputError(
                f"memory of {memory / 2**20:.1f} MiB for {prepared.n_parameters} parameters"
                f" and {a_row / 2**20:.2f} MiB of activations a row",
                expected=f"at least {(memory - spare + a_row) / 2**20:.1f} MiB: the copy of the model, three vectors of"
                " its parameters, the graph of one row",
                hint="raise memory=, or choose fewer parameters=",
            )
        most = GRAPH if prepared.device.type == "cpu" else spare
        if rows.n * a_row <= spare:
            return cls(mode, min(rows.n, max(1, int(most // a_row))), True, 1, memory - copied)
        group = max(1, int(spare / 2 // (HOLES * direction)))
        rest = spare - (group - 1) * HOLES * direction
        return cls(mode, max(1, int(min(most, rest) // a_row)), False, group, memory - copied)


def _graph_bytes(prepared: PreparedModel, rows: Rows, mode: JvpMode) -> tuple[float, float]:
    """Bytes a row, and bytes once, of what autograd keeps for a chunk, with as much again for the work in progress."""
    known = {t.untyped_storage().data_ptr() for t in (*prepared.module.parameters(), *prepared.module.buffers())}

    def kept(n: int) -> int:
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        batch = rows.take([i % rows.n for i in range(n)])
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            linearized = Linearized(prepared, batch, n, mode=mode, keep_graph=True)
            linearized.vjp(torch.ones(n, prepared.n_outputs, dtype=prepared.dtype, device=prepared.device))
        return sum(size for pointer, size in storages.items() if pointer not in known)

    few, more = kept(2), kept(6)
    a_row = max((more - few) / 4, prepared.n_outputs * torch.finfo(prepared.dtype).bits / 8)
    return 2 * HOLES * a_row, max(0.0, few - 2 * a_row)


def _squared_norms(prepared: PreparedModel, rows: Rows, memory: int) -> Tensor:
    """|∂f_c(x_n)/∂θ|² of every row and output, (n, C), with at most ``memory`` bytes of Jacobian at a time."""
    names = list(prepared.parameters)
    a_row = 3 * prepared.n_outputs * sum(p.nbytes for p in prepared.parameters.values())  # vmap, cat and their result
    chunk = int(memory // a_row)
    if chunk and _vectorizes(prepared, rows, names):
        parts = []
        for start in range(0, rows.n, chunk):
            stop = min(start + chunk, rows.n)
            jacobian = vectorized_jacobian(prepared, rows.slice(start, stop), names, _one_hot(prepared, stop - start))
            parts.append(torch.einsum("ncp,ncp->nc", jacobian, jacobian))
        return torch.cat(parts)
    return torch.stack([_row_norms(prepared, rows.slice(i, i + 1)) for i in range(rows.n)])


def _one_hot(prepared: PreparedModel, n: int) -> Tensor:
    C = prepared.n_outputs
    return torch.eye(C, dtype=prepared.dtype, device=prepared.device).expand(n, C, C)


def _vectorizes(prepared: PreparedModel, rows: Rows, names: list[str]) -> bool:
    """Whether torch.func follows this model, and agrees with plain autograd on one row."""
    try:
        found = vectorized_jacobian(prepared, rows.slice(0, 1), names, _one_hot(prepared, 1))[0].norm(dim=1) ** 2
    except Exception:  # vmap and jacrev raise many types, from inside the user's module
        return False
    expected = _row_norms(prepared, rows.slice(0, 1))
    tolerance = 1e-3 if prepared.dtype == torch.float32 else 1e-9
    return bool((found - expected).norm() <= tolerance * expected.norm())


def _row_norms(prepared: PreparedModel, row: Batch) -> Tensor:
    """|∂f_c(x)/∂θ|² of one row, (C,): one backward pass an output, and never more than one gradient at a time."""
    with torch.enable_grad():
        outputs = prepared.outputs(row, 1)[0]
        squares = torch.zeros_like(outputs)
        if outputs.requires_grad:
            for c in range(len(outputs)):
                gradients = torch.autograd.grad(
                    outputs[c], list(prepared.parameters.values()), retain_graph=True, allow_unused=True
                )
                squares[c] = sum(float(g.to_dense().norm(dtype=torch.float64)) ** 2 for g in gradients if g is not None)
    return squares.detach()
