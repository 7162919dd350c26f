"""Products of an activation and a weight, in any notation, as linear maps: matrix products, einsum, bilinear forms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernelmem.tangents.capture import Decomposition, Function, IsWeight
from kernelmem.tangents.rules.layout import Layout, parameter_view, requires_gradient

MATMUL = (
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.linalg.matmul),
    *(torch.mm, Tensor.mm, torch.bmm, Tensor.bmm, torch.mv, Tensor.mv),
)
ADD_MATMUL = (torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm, torch.addmv, Tensor.addmv)
PRODUCTS = (*MATMUL, *ADD_MATMUL, torch.einsum, torch.tensordot, F.bilinear)

GROUPED = (F, "grouped_mm"), (torch, "_grouped_mm")

Labels = tuple[str, ...]  # one label per axis


@dataclass(frozen=True)
class Product:
    """Linear map Σ_i W_oi x_i of the last axis of x, in G groups if the weight has three axes.

    Attributes:
        x: activations (..., in), or (..., G, in).
        weight: the parameter, or a weight computed from parameters, (out, in) or (G, out, in) after ``layout``.
        layout: order of the entries of the parameter; None for a weight that is computed.
        bias: added to the output (..., out), if any.
        then: function from the output (..., [G,] out) to that of the call; None if they are equal.
    """

    x: Tensor
    weight: Tensor
    layout: Layout | None
    bias: Tensor | None = None
    then: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class _Contraction:
    """Two operands with a label for each of their axes and for those of the result."""

    operands: tuple[Tensor, Tensor]
    labels: tuple[Labels, Labels]
    result: Labels


class GroupedProductRule(Decomposition):
    """F.grouped_mm of rows that are sorted by expert, as one matrix product for each expert."""

    functions = tuple(getattr(module, name) for module, name in GROUPED if hasattr(module, name))

    def expand(self, function: Function, args: tuple, kwargs: dict) -> object:
        """Return the products of consecutive blocks of rows (S, in) with the experts (E, in, out); NotImplemented otherwise."""
        names = ("mat_a", "mat_b", "offs", "bias", "out_dtype")
        arguments = dict(zip(names[:2], args, strict=False)) | kwargs
        x, weight, ends = arguments["mat_a"], arguments["mat_b"], arguments.get("offs")
        if not requires_gradient(weight) or x.ndim != 2 or weight.ndim != 3 or ends is None:
            return NotImplemented
        if arguments.get("bias") is not None or arguments.get("out_dtype") not in (None, x.dtype):
            return NotImplemented
        outputs, start = [], 0
        for expert, end in enumerate(ends.tolist()):
            if end > start:
                outputs.append(torch.matmul(x[start:end], weight[expert]))
            start = end
        if start < len(x):
            outputs.append(x.new_zeros(len(x) - start, weight.shape[-1]))
        return torch.cat(outputs)


def parse_product(function: Function, args: tuple, kwargs: dict, is_weight: IsWeight) -> Product | None:
    """Parse a call of one of ``PRODUCTS`` with one weight; return None for other calls."""
    if function is F.bilinear:
        return _parse_bilinear(*args, **kwargs, is_weight=is_weight)
    addend, scales = None, (1.0, 1.0)
    if function in ADD_MATMUL:
        names = ("input", "first", "second")
        kwargs = {{"mat1": "first", "mat2": "second", "batch1": "first", "batch2": "second", "mat": "first",
                   "vec": "second"}.get(name, name): value for name, value in kwargs.items()}  # fmt: skip
        arguments = dict(zip(names, args, strict=False)) | kwargs
        if arguments.keys() - {*names, "beta", "alpha"}:
            return None
        addend, scales = arguments["input"], (arguments.get("beta", 1), arguments.get("alpha", 1))
        contraction = _matmul(arguments["first"], arguments["second"])
    elif function in MATMUL:
        operands = (*args, *kwargs.values())
        if len(operands) != 2 or "out" in kwargs:
            return None
        contraction = _matmul(*(reversed(operands) if function is Tensor.__rmatmul__ else operands))
    else:
        contraction = _einsum(*args, **kwargs) if function is torch.einsum else _tensordot(*args, **kwargs)
    product = None if contraction is None else _as_linear_map(contraction, is_weight)
    return product if product is None or addend is None else _with_addend(product, addend, *scales)


def _with_addend(product: Product, addend: Tensor, beta: float, alpha: float) -> Product:
    """Return β · addend + α · product; a vector that is added without factors is a bias."""
    has_groups = len(product.weight.shape if product.layout is None else product.layout.shape) == 3
    if beta == alpha == 1 and product.then is None and not has_groups and addend.ndim == 1 and len(addend) > 1:
        return Product(product.x, product.weight, product.layout, addend)
    inner = product.then

    def add(output: Tensor) -> Tensor:
        output = output if inner is None else inner(output)
        output = output if alpha == 1 else output * alpha
        return output if beta == 0 else (addend if beta == 1 else addend * beta) + output

    return Product(product.x, product.weight, product.layout, then=add)


def _parse_bilinear(
    input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None, *, is_weight: IsWeight
) -> Product | None:
    """Parse Σ_ij x_i W_oij y_j: a linear map of the products x_i y_j."""
    if is_weight(input1) or is_weight(input2):
        return None
    x = (input1[..., :, None] * input2[..., None, :]).flatten(-2)
    parameter, layout = parameter_view(weight)
    if layout is None or layout.repeats:
        return Product(x, weight.flatten(1), None, bias)
    return Product(x, parameter, layout.arranged(range(3), (len(weight), weight[0].numel())), bias)


def _matmul(left: Tensor, right: Tensor) -> _Contraction | None:
    """Return the contraction of left @ right, with batch axes aligned at the last one."""
    if not isinstance(left, Tensor) or not isinstance(right, Tensor) or not left.ndim or not right.ndim:
        return None
    batch = tuple(f"batch {axis}" for axis in range(max(left.ndim, right.ndim) - 2, 0, -1))
    left_batch = batch[len(batch) - max(left.ndim - 2, 0) :]
    right_batch = batch[len(batch) - max(right.ndim - 2, 0) :]
    row, column = (("row",) if left.ndim > 1 else ()), (("column",) if right.ndim > 1 else ())
    labels = (*left_batch, *row, "inner"), (*right_batch, "inner", *column)
    return _Contraction((left, right), labels, (*batch, *row, *column))


def _tensordot(a: Tensor, b: Tensor, dims: int | Sequence = 2, out: Tensor | None = None) -> _Contraction | None:
    """Return the contraction of torch.tensordot."""
    if out is not None or isinstance(dims, Tensor):
        return None
    if isinstance(dims, int):
        axes = list(range(a.ndim - dims, a.ndim)), list(range(dims))
    else:
        axes = tuple([int(axis) for axis in ([part] if isinstance(part, int) else part)] for part in dims)
    pairs = {axis % a.ndim: f"inner {i}" for i, axis in enumerate(axes[0])}
    a_labels = tuple(pairs.get(axis, f"a {axis}") for axis in range(a.ndim))
    pairs = {axis % b.ndim: f"inner {i}" for i, axis in enumerate(axes[1])}
    b_labels = tuple(pairs.get(axis, f"b {axis}") for axis in range(b.ndim))
    result = tuple(label for label in (*a_labels, *b_labels) if not label.startswith("inner"))
    return _Contraction((a, b), (a_labels, b_labels), result)


def _einsum(equation: object, *operands: object) -> _Contraction | None:
    """Return the contraction of torch.einsum with an equation in letters and two operands; None for other calls."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    tensors = tuple(operand for operand in operands if isinstance(operand, Tensor))
    if not isinstance(equation, str) or len(tensors) != 2 or len(operands) != 2:
        return None
    left_side, arrow, result = equation.replace(" ", "").partition("->")
    terms = left_side.split(",")
    n_wild = [tensor.ndim - len(term.replace("...", "")) for term, tensor in zip(terms, tensors, strict=False)]
    if len(terms) != 2 or any(n < 0 or (n and "..." not in term) for n, term in zip(n_wild, terms, strict=True)):
        return None  # torch refuses it
    wild = tuple(f"batch {axis}" for axis in range(max(n_wild), 0, -1))  # the axes of an ellipsis

    def labels(term: str, n: int) -> Labels:
        before, ellipsis, after = term.partition("...")
        return (*before, *(wild[len(wild) - n :] if ellipsis else ()), *after)

    if not arrow:
        letters = left_side.replace(",", "").replace("...", "")
        result = "..." + "".join(sorted(letter for letter in letters if letters.count(letter) == 1))
    operand_labels = labels(terms[0], n_wild[0]), labels(terms[1], n_wild[1])
    return _Contraction((tensors[0], tensors[1]), operand_labels, labels(result, len(wild)))


def _as_linear_map(contraction: _Contraction, is_weight: IsWeight) -> Product | None:
    """Return a contraction of one weight with one activation as a linear map in groups; None for other contractions."""
    positions = [i for i, operand in enumerate(contraction.operands) if is_weight(operand)]
    if len(positions) != 1:
        return None
    w_index = positions[0]
    weight, x = contraction.operands[w_index], contraction.operands[1 - w_index]
    w_labels, x_labels = contraction.labels[w_index], contraction.labels[1 - w_index]
    if len(set(w_labels)) < len(w_labels) or len(set(x_labels)) < len(x_labels):
        return None  # a diagonal
    w_sizes, x_sizes = dict(zip(w_labels, weight.shape, strict=True)), dict(zip(x_labels, x.shape, strict=True))
    # Axes of length 1 that are broadcast are left out of their operand.
    shared = w_sizes.keys() & x_sizes.keys()
    if any(1 not in (w_sizes[label], x_sizes[label]) and w_sizes[label] != x_sizes[label] for label in shared):
        return None  # torch refuses it
    w_kept = tuple(label for label in w_labels if not (label in shared and w_sizes[label] == 1))
    x_kept = tuple(label for label in x_labels if label not in w_kept or x_sizes[label] == w_sizes[label])
    sizes = {label: x_sizes[label] for label in x_kept} | {label: w_sizes[label] for label in w_kept}
    outside = contraction.result
    if any(label not in outside and label not in x_kept for label in w_kept):
        return None  # a sum over an axis of the weight alone
    groups = tuple(label for label in w_kept if label in x_kept and label in outside)
    inner = tuple(label for label in w_kept if label not in outside)
    free = tuple(label for label in x_kept if label in outside and label not in w_kept)
    columns = tuple(label for label in w_kept if label not in x_kept)
    numbers = {key: torch.Size([sizes[label] for label in part]).numel()
               for key, part in (("G", groups), ("in", inner), ("out", columns))}  # fmt: skip
    group_shape = (numbers["G"],) if groups else ()

    summed = tuple(label for label in x_kept if label not in outside and label not in w_kept)
    x = x.squeeze(tuple(axis for axis, label in enumerate(x_labels) if label not in x_kept))
    x = x.permute([x_kept.index(label) for label in (*free, *groups, *inner, *summed)])
    x = x.sum(tuple(range(x.ndim - len(summed), x.ndim))) if summed else x
    x = x.reshape(*(sizes[label] for label in free), *group_shape, numbers["in"])

    w_shape = (*group_shape, numbers["out"], numbers["in"])
    w_order = [w_labels.index(label) for label in (*groups, *columns, *inner)]
    w_dropped = [axis for axis, label in enumerate(w_labels) if label not in w_kept]
    parameter, layout = parameter_view(weight)
    if layout is None or layout.repeats:
        parameter, layout = weight.permute(*w_dropped, *w_order).reshape(w_shape), None
    else:
        layout = layout.arranged((*w_dropped, *w_order), w_shape)
    labels = (*free, *groups, *columns)
    order = [labels.index(label) for label in outside]
    if len(groups) <= 1 and len(columns) == 1 and order == sorted(order):
        return Product(x, parameter, layout)
    shape = tuple(sizes[label] for label in labels)
    return Product(x, parameter, layout, then=lambda output: output.reshape(shape).permute(order))
