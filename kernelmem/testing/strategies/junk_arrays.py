"""Hypothesis strategies of unusual and invalid arrays: fixed ones, random ones, valid ones with a defect."""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset


@dataclass(frozen=True)
class Junk:
    """An unusual or invalid argument: its kind, a label that is its ``repr``, and a function that makes it."""

    kind: str
    label: str
    make: Callable[[], object]

    def __repr__(self) -> str:
        return f"{self.kind}: {self.label}"


Values = Mapping[str, Callable[[], object]]


ARRAY_DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
)
FILLS = (0.0, 1.0, -1.0, 0.5, math.nan, math.inf, -math.inf, 1e300, -1e300, 1e39, 1e-300, 1e-40, 2.0**40)


@st.composite
def arrays(draw: st.DrawFn) -> Junk:
    """Draw a tensor or array of 0 to 4 axes of length 0 to 5: random, or constant, or random with one other entry."""
    shape = tuple(draw(st.lists(st.sampled_from((4, 3, 2, 1, 0, 5)), max_size=4)))
    dtype, fill = draw(st.sampled_from(ARRAY_DTYPES)), draw(st.sampled_from(FILLS))
    style, as_numpy = draw(st.sampled_from(("random", "constant", "one entry"))), draw(st.booleans())

    def make() -> object:
        with np.errstate(all="ignore"):
            return _array(shape, dtype, fill, style, as_numpy)

    return Junk("array", f"{style} {fill} {str(dtype)[6:]} {shape}{' numpy' * as_numpy}", make)


def _array(shape: tuple[int, ...], dtype: torch.dtype, fill: float, style: str, as_numpy: bool) -> object:
    """Return the tensor or array that :func:`arrays` describes."""
    values = np.random.default_rng(0).standard_normal(shape)
    if style == "constant":
        values = np.full(shape, fill)
    elif values.size and style == "one entry":
        values.flat[0] = fill
    tensor = torch.from_numpy(np.asarray(values))
    tensor = (tensor.nan_to_num(0.0, 1e18, -1e18) if not (dtype.is_floating_point or dtype.is_complex) else tensor).to(
        dtype
    )
    return tensor.numpy() if as_numpy and dtype is not torch.bfloat16 else tensor


def defects(array: object) -> list[Junk]:
    """Return a valid tensor or array with each defect: one bad entry, another scale, dtype, layout or length."""
    values = torch.as_tensor(array).detach()
    return [Junk("array", f"valid, {label}", lambda f=f: f(values)) for label, f in SPOILS.items()]


def spoiled(array: object) -> st.SearchStrategy[Junk]:
    """Draw a valid tensor or array with one of the :func:`defects`."""
    return st.sampled_from(defects(array))


def _with_entry(values: Tensor, entry: float) -> Tensor:
    """Return a copy in floating point whose last entry is ``entry``."""
    copy = values.detach().clone()
    copy = copy if copy.is_floating_point() else copy.to(torch.float64)
    if copy.numel():
        copy.view(-1)[-1] = entry
    return copy


SPOILS: Mapping[str, Callable[[Tensor], object]] = {
    "one NaN": lambda values: _with_entry(values.contiguous(), math.nan),
    "one inf": lambda values: _with_entry(values.contiguous(), math.inf),
    "one 1e300": lambda values: _with_entry(values.contiguous().to(torch.float64), 1e300),
    "one 1e39": lambda values: _with_entry(values.contiguous().to(torch.float64), 1e39),
    "times 1e300": lambda values: values.to(torch.float64) * 1e300,
    "times 1e200": lambda values: values.to(torch.float64) * 1e200,
    "times 1e-200": lambda values: values.to(torch.float64) * 1e-200,
    "times 1e37": lambda values: values.to(torch.float64) * 1e37,
    "times -1": lambda values: values.to(torch.float64) * -1,
    "times 0": lambda values: values * 0,
    "complex": lambda values: values.to(torch.complex128) * (1 + 1j),
    "float16": lambda values: values.half(),
    "float32": lambda values: values.float(),
    "numpy": lambda values: values.numpy().copy(),
    "list": lambda values: values.tolist(),
    "without the last": lambda values: values[:-1],
    "twice": lambda values: torch.cat([values, values]) if values.ndim else values,
    "one axis more": lambda values: values[None],
    "first row only": lambda values: values[:1],
    "sparse": lambda values: values.to_sparse(),
    "as objects": lambda values: values.numpy().astype(object),
    "as text": lambda values: values.numpy().astype(str),
    "requires grad": lambda values: values.to(torch.float64).requires_grad_(),
    "not contiguous": lambda values: torch.stack([values, values], -1)[..., 0],
}


def _ragged() -> object:
    return [[1.0, 2.0], [3.0]]


class _NoLength(IterableDataset[Tensor]):
    def __iter__(self):
        yield torch.ones(3)


def _self_reference() -> object:
    values: list[object] = [1.0]
    values.append(values)
    return values


def _random_matrix(scale: float, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(4, 3, generator=generator, dtype=torch.float64) * scale).to(dtype)


ARRAYS: Values = {
    "ones (4, 3)": lambda: torch.ones(4, 3),
    "identity (4, 4)": lambda: torch.eye(4),
    "complex symmetric": lambda: torch.eye(4, dtype=torch.complex128) + 1j,
    "complex Hermitian numpy": lambda: np.eye(4) + 1j * np.triu(np.ones((4, 4)), 1) - 1j * np.tril(np.ones((4, 4)), -1),
    "object array": lambda: np.array([[1, None], [2, 3]], dtype=object),
    "strings": lambda: np.array(["a", "b", "c", "d"]),
    "list of strings": lambda: ["a", "b", "c", "d"],
    "bytes array": lambda: np.array([b"a", b"b", b"c", b"d"]),
    "datetimes": lambda: np.array(["2020-01-01"] * 4, dtype="datetime64[D]"),
    "structured array": lambda: np.zeros(4, dtype=[("a", "f8"), ("b", "i4")]),
    "one NaN": lambda: torch.tensor([[1.0, math.nan], [0.0, 1.0]]),
    "all inf": lambda: torch.full((4, 4), math.inf),
    "1e300 (4, 4)": lambda: torch.full((4, 4), 1e300, dtype=torch.float64),
    "1e300 diagonal": lambda: torch.eye(4, dtype=torch.float64) * 1e300,
    "1e300 random": lambda: _random_matrix(1e300),
    "1e200 vector": lambda: torch.full((4,), 1e200, dtype=torch.float64),
    "1e39 row": lambda: torch.cat([torch.full((1, 3), 1e39, dtype=torch.float64), torch.ones(3, 3)]),
    "1e38 float32": lambda: _random_matrix(1e38, torch.float32),
    "1e-300 (4, 4)": lambda: torch.full((4, 4), 1e-300, dtype=torch.float64),
    "1e-300 diagonal": lambda: torch.eye(4, dtype=torch.float64) * 1e-300,
    "zeros (4, 4)": lambda: torch.zeros(4, 4),
    "zeros (4, 3)": lambda: torch.zeros(4, 3),
    "empty": lambda: torch.empty(0),
    "empty (0, 3)": lambda: torch.empty(0, 3),
    "empty (4, 0)": lambda: torch.empty(4, 0),
    "empty list": list,
    "0-d": lambda: torch.tensor(1.0),
    "numpy 0-d": lambda: np.array(3),
    "5 axes": lambda: torch.ones(2, 1, 1, 1, 2),
    "sparse COO": lambda: torch.eye(4).to_sparse(),
    "sparse CSR": lambda: torch.eye(4).to_sparse_csr(),
    "meta tensor": lambda: torch.empty(4, 4, device="meta"),
    "nested tensor": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.strided),
    "float8": lambda: torch.ones(4, 4).to(torch.float8_e4m3fn),
    "masked array": lambda: np.ma.masked_array([[1.0, 2.0], [3.0, 4.0]], mask=[[False, True], [False, False]]),
    "masked array without mask": lambda: np.ma.masked_array([1.0, 2.0, 3.0, 4.0]),
    "big-endian": lambda: np.ones((4, 3), dtype=">f8"),
    "longdouble": lambda: np.ones((4, 3), dtype=np.longdouble),
    "uint64 beyond int64": lambda: np.array([2**64 - 1, 1, 2, 3], dtype=np.uint64),
    "uint16": lambda: np.array([0, 1, 0, 1], dtype=np.uint16),
    "negative strides": lambda: np.eye(4)[::-1],
    "read-only": lambda: np.frombuffer(np.ones(12).tobytes()).reshape(4, 3),
    "requires grad": lambda: torch.ones(4, 3, requires_grad=True),
    "ragged list": _ragged,
    "list with None": lambda: [1.0, None, 2.0, 3.0],
    "list of huge integers": lambda: [10**400, 1, 2, 3],
    "list that contains itself": _self_reference,
    "integers as float": lambda: np.array([0.0, 1.0, 0.0, 1.0]),
    "column of labels": lambda: torch.tensor([[0], [1], [0], [1]]),
    "labels from 1": lambda: torch.tensor([1, 2, 1, 2]),
    "negative labels": lambda: torch.tensor([-1, 0, 1, 0]),
    "one class": lambda: torch.zeros(4, dtype=torch.int64),
    "huge label": lambda: torch.tensor([0, 1, 2**62, 1]),
    "fractional labels": lambda: torch.tensor([0.0, 0.5, 1.0, 1.0]),
    "float labels beyond int64": lambda: torch.tensor([0.0, 1e30, 1.0, 1.0], dtype=torch.float64),
    "bools": lambda: torch.tensor([True, False, True, False]),
    "bytes": lambda: b"abcd",
    "memoryview": lambda: memoryview(b"abcd"),
    "range": lambda: range(4),
    "generator": lambda: (float(i) for i in range(4)),
    "set": lambda: {0, 1, 2, 3},
    "dict of arrays": lambda: {"a": torch.ones(4, 3), "b": torch.ones(4)},
    "dict of different lengths": lambda: {"a": torch.ones(4, 3), "b": torch.ones(3)},
    "empty dict": dict,
    "ordered dict": lambda: OrderedDict(x=torch.ones(4, 3)),
    "pair of arrays": lambda: (torch.ones(4, 3), torch.tensor([0, 1, 0, 1])),
    "empty tuple": tuple,
    "tuple of None": lambda: (None, None),
    "list of tensors": lambda: [torch.ones(3), torch.ones(3)],
    "data set": lambda: TensorDataset(torch.ones(4, 3)),
    "empty data set": lambda: TensorDataset(torch.ones(0, 3)),
    "iterable data set": _NoLength,
    "data loader": lambda: DataLoader(TensorDataset(torch.ones(4, 3)), batch_size=2),
    "loader of iterable": lambda: DataLoader(_NoLength(), batch_size=None),
}
