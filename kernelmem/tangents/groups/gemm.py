"""Large matrix products out += A Bᵀ, and their symmetric form at half the cost."""

from itertools import pairwise

from torch import Tensor

from kernelmem.tangents.groups.float32 import product, uses_onednn

SMALLEST_BLOCK = 64  # rows; smaller products do not run at full speed
LARGEST_BLOCK = 256  # rows; larger products are not read again from the processor cache
PRODUCT_NUMBERS = 2**22  # largest product that is stored before it is added


def row_blocks(n: int, *, symmetric: bool) -> list[tuple[int, int, int]]:
    """Split the n rows of a matrix into blocks and return (start, stop, first column) for each.

    The first column is 0, or with ``symmetric`` the start of the block, so that only the upper triangle is covered.

    >>> row_blocks(100, symmetric=False)
    [(0, 100, 0)]
    >>> row_blocks(150, symmetric=True)
    [(0, 75, 0), (75, 150, 75)]
    """
    n_blocks = -(-n // LARGEST_BLOCK)
    if symmetric:  # more blocks leave out more of the lower triangle
        n_blocks = max(n_blocks, min(8, n // SMALLEST_BLOCK))
    n_blocks = max(1, n_blocks)
    edges = [n * i // n_blocks for i in range(n_blocks + 1)]
    return [(start, stop, start if symmetric else 0) for start, stop in pairwise(edges)]


def add_gram(out: Tensor, left: Tensor, right: Tensor, *, symmetric: bool) -> None:
    """Add ``left`` (n, p) times the transpose of ``right`` (m, p) to ``out`` (n, m) in place.

    With ``symmetric`` only blocks that contain the diagonal or lie above it are computed: the block above the diagonal blocks
    of the two halves of the rows in one product, and these in the same way. Products of large squares run fastest.
    """
    if not symmetric or len(left) < 2 * SMALLEST_BLOCK:
        add_product(out, left, right)
        return
    first, second = slice(len(left) // 2), slice(len(left) // 2, None)
    add_product(out[first, second], left[first], right[second])
    for half in (first, second):
        add_gram(out[half, half], left[half], right[half], symmetric=True)


def add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left`` (n, p) times the transpose of ``right`` (m, p) to ``out`` (n, m) in place."""
    if not uses_onednn(left, right):
        out.addmm_(left, right.T)
        return
    step = max(1, PRODUCT_NUMBERS // max(1, len(right)))  # oneDNN does not add in place
    for i in range(0, len(left), step):
        out[i : i + step] += product(left[i : i + step], right)


def add_product_of_grams(
    out: Tensor, activations: tuple[Tensor, Tensor], gradients: tuple[Tensor, Tensor], bias: float
) -> None:
    """Add (A Bᵀ + bias) ∘ (G Hᵀ) to ``out`` (n, m) in place, for the factors (A, B) and (G, H) of n and m rows.

    Blocks of rows bound the size of the two products, which need not be as large as ``out``; smaller ones bring the rows that
    are multiplied into the processor cache once.
    """
    (a, b), (g, h) = activations, gradients
    step = max(SMALLEST_BLOCK, PRODUCT_NUMBERS // max(1, len(b)))
    for i in range(0, len(a), step):
        scale, gram = product(a[i : i + step], b), product(g[i : i + step], h)
        for j in range(0, len(scale), SMALLEST_BLOCK):
            rows = slice(j, j + SMALLEST_BLOCK)
            if bias:
                scale[rows] += bias
            out[i : i + step][rows].addcmul_(gram[rows], scale[rows])


def add_scaled_gram(out: Tensor, left: Tensor, right: Tensor, scale: Tensor, *, symmetric: bool) -> None:
    """Add the entrywise product of ``scale`` and ``left @ right.T`` to ``out`` (n, m) in place, of (n, p) and (m, p).

    With ``symmetric`` only the upper triangle is computed. Blocks of rows keep the product in the processor cache, in one
    buffer for all of them.
    """
    buffer = left.new_empty(0)
    for start, stop, first_column in row_blocks(len(left), symmetric=symmetric):
        columns = right[first_column:]
        size = (stop - start) * len(columns)
        buffer = buffer if buffer.numel() >= size else left.new_empty(size)
        block = product(left[start:stop], columns, out=buffer[:size].view(stop - start, -1))
        out[start:stop, first_column:].addcmul_(block, scale[start:stop, first_column:])
