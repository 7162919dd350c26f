"""kernelmem.kernels.operator against the formed kernel, its closed form, SciPy's solvers, its refusals and limits."""

import copy
import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import cg, eigsh
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kernelmem.core.errors import InputError, NumericalError, UnsupportedModelError, VerificationError
from kernelmem.kernels import reference
from kernelmem.kernels.operator import ntk_operator

KINDS = ("trace", "pseudo", "full")


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        h = self.norm(x)
        return self.out((x + self.attention(h, h, h)[0]).mean(1))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.body = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, tokens):
        return self.out(self.body(self.embedding(tokens)).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(5, 4, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.rnn(x[:, None] * torch.ones(1, 3, 1, dtype=x.dtype))[0][:, -1])


class Tied(nn.Module):
    """A layer called twice, a free parameter, and a weight used in functional form."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 5)
        self.gain = nn.Parameter(torch.linspace(-1, 1, 5))
        self.shift = nn.Parameter(torch.ones(1, 3))  # its gradient, for one row, is the cotangent itself
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        x = self.inner(torch.tanh(self.inner(x)) * self.gain)
        return self.out(nn.functional.linear(x, self.out.weight.T @ self.out.weight)) + self.shift


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, groups=2),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def perceptron():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


ZOO = {
    "perceptron": (perceptron, normal(7, 5)),
    "convolutional": (convolutional, normal(7, 2, 6, 6)),
    "attention": (Attention, normal(7, 4, 8)),
    "encoder": (Encoder, torch.randint(0, 11, (7, 4), generator=torch.Generator().manual_seed(7))),
    "lstm": (Recurrent, normal(7, 5)),
    "tied": (Tied, normal(7, 5)),
}


def made(name):
    torch.manual_seed(0)
    make, x = ZOO[name]
    return make().eval(), x


@pytest.fixture
def model():
    return made("perceptron")[0].double()


@pytest.fixture
def x():
    return normal(7, 5)


def formed(model, x, outputs):
    """The kernel as the matrix that the operator represents, from the slow definition in float64."""
    K = reference.ntk(model, x, outputs=outputs, dtype=torch.float64)
    return K.transpose(1, 2).flatten(2).flatten(0, 1) if outputs == "full" else K


def relative(found, expected):
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("outputs", KINDS)
@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_products_diagonal_and_trace_equal_the_reference(name, outputs, dtype, tolerance):
    """Of all rows in one pass, and under a memory limit; in float32 one kind of kernel per model under the limit."""
    for rows in ("all", "few") if dtype == torch.float64 or outputs == KINDS[list(ZOO).index(name) % 3] else ("all",):
        compare(name, outputs, dtype, tolerance, rows)


@pytest.mark.soak
@pytest.mark.parametrize("outputs", KINDS)
@pytest.mark.parametrize("name", ZOO)
def test_products_in_float32_under_a_memory_limit(name, outputs):
    compare(name, outputs, torch.float32, 1e-4, "few")


def compare(name, outputs, dtype, tolerance, rows):
    model, x = made(name)
    K = formed(model, x, outputs)
    op = ntk_operator(model, x, outputs=outputs, dtype=dtype)
    if rows == "few":
        op = limited(op, model, x, chunk=2, outputs=outputs, dtype=dtype)
    v, V = normal(len(K)), normal(len(K), 3)
    assert op.shape == K.shape
    assert op.dtype == (op @ v.to(dtype)).dtype == dtype
    assert relative(op @ v.to(dtype), K @ v) < tolerance
    assert relative(op @ V.to(dtype), K @ V) < tolerance
    assert relative(op.diagonal(), K.diagonal()) < tolerance
    assert math.isclose(op.trace(), float(K.trace()), rel_tol=tolerance)


def limited(op, model, x, *, chunk, **options):
    """The same operator under a memory limit, by bisection near the smallest, that lets it take ``chunk`` rows."""
    limits = [(8 + eighths) * 2**exponent for exponent in range(5, 25) for eighths in range(8)]  # bytes
    low, high = 0, len(limits) - 1
    while low < high:
        middle = (low + high) // 2
        try:
            fits = ntk_operator(model, x, memory=limits[middle], **options)._plan.rows_per_chunk >= chunk
        except InputError:
            fits = False
        low, high = (low, middle) if fits else (middle + 1, high)
    found = ntk_operator(model, x, memory=limits[high], **options)
    assert chunk <= found._plan.rows_per_chunk < op.n
    return found


def test_linear_model_has_the_closed_form(x):
    op = ntk_operator(nn.Linear(5, 4).double(), x)
    inner = x @ x.T + 1
    v = normal(7)
    assert relative(op @ v, 4 * inner @ v) < 1e-14
    assert relative(op.diagonal(), 4 * inner.diagonal()) < 1e-14


@pytest.mark.parametrize("outputs", KINDS)
def test_group_of_directions_changes_no_value(model, x, outputs):
    op = ntk_operator(model, x, outputs=outputs)
    V = normal(op.shape[0], 4)
    for chunk, group, keep in [(1, 1, False), (2, 5, False), (3, 100, True), (3, 1, True), (7, 1, False)]:
        cut = dataclasses.replace(
            op, _plan=dataclasses.replace(op._plan, rows_per_chunk=chunk, directions_per_pass=group, keep_graphs=keep)
        )
        assert relative(cut @ V, op @ V) < 1e-13
    assert relative(torch.stack([op @ V[:, k] for k in range(4)], 1), op @ V) < 1e-13


@pytest.mark.parametrize("outputs", KINDS)
def test_leading_eigenvalues_by_scipy(model, x, outputs):
    op = ntk_operator(model, x, outputs=outputs)
    expected = torch.linalg.eigvalsh(formed(model, x, outputs))[-3:]
    found = eigsh(op.as_scipy(), k=3, return_eigenvectors=False)
    assert relative(torch.from_numpy(np.sort(found)), expected) < 1e-10


@pytest.mark.parametrize("name", ["perceptron", "convolutional"])
def test_conjugate_gradients_by_scipy(name):
    model, x = made(name)
    op = ntk_operator(model, x, dtype=torch.float64)
    scipy = op.as_scipy()
    y = normal(7)
    ridge = 0.1 * op.trace() / 7
    shifted = type(scipy)(scipy.shape, matvec=lambda v: scipy @ v + ridge * v, dtype=scipy.dtype)
    found, info = cg(shifted, y.numpy(), rtol=1e-12)
    assert info == 0
    dense = torch.linalg.solve(formed(model, x, "trace") + ridge * torch.eye(7, dtype=torch.float64), y)
    assert relative(torch.from_numpy(found), dense) < 1e-9


def test_the_scipy_view_keeps_its_precision_and_takes_any(model, x):
    op = ntk_operator(model, x, dtype=torch.float32)
    view = op.as_scipy()
    assert view.dtype == np.float32
    assert view.shape == (7, 7)
    V = normal(7, 2).numpy()
    assert (view @ V).dtype == np.float32
    assert np.allclose(view @ V, formed(model, x, "trace").numpy() @ V, rtol=1e-4)
    assert np.array_equal(view.T @ V[:, 0], view @ V[:, 0])
    assert np.allclose(view.rmatmat(V), view.matmat(V))
    with pytest.raises(InputError, match="complex"):
        view @ (V[:, 0] * 1j)


@pytest.mark.parametrize("outputs", KINDS)
def test_one_output_one_row_one_column(outputs):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double(), normal(1, 5)
    op = ntk_operator(model, x, outputs=outputs)
    K = formed(model, x, outputs)
    assert relative(op @ torch.ones(1, dtype=torch.float64), K.sum(1)) < 1e-13
    assert (op @ torch.ones(1, 1, dtype=torch.float64)).shape == (1, 1)
    assert (op @ torch.ones(1, 0, dtype=torch.float64)).shape == (1, 0)


@pytest.mark.parametrize("outputs", KINDS)
@pytest.mark.parametrize("chunk", [1, 7])
def test_the_vector_is_not_written_to(outputs, chunk):
    model, x = made("tied")
    op = ntk_operator(model, x, outputs=outputs, dtype=torch.float64)
    op = dataclasses.replace(
        op, _plan=dataclasses.replace(op._plan, rows_per_chunk=chunk, directions_per_pass=3, keep_graphs=False)
    )
    v = normal(op.shape[0])
    before = v.clone()
    found = op @ v
    assert torch.equal(v, before)
    assert relative(found, formed(model, x, outputs) @ before) < 1e-12


def test_parameters_select_summands(model, x):
    names = [name for name, _ in model.named_parameters()]
    v = normal(7)
    total = sum(ntk_operator(model, x, parameters=[name]) @ v for name in names)
    assert relative(total, ntk_operator(model, x) @ v) < 1e-13
    model[0].requires_grad_(False)
    expected = reference.ntk(model, x, parameters=[name for name in names if not name.startswith("0")])
    assert relative(ntk_operator(model, x) @ v, expected @ v) < 1e-13
    assert relative(ntk_operator(model, x).diagonal(), expected.diagonal()) < 1e-13


def test_later_training_does_not_alter_the_operator_nor_it_the_model(model, x):
    model.train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = copy.deepcopy(model)
    op = ntk_operator(model, x)
    v = normal(7)
    found = op @ v
    op.diagonal()
    assert model.training
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(op @ v, found)


@pytest.mark.parametrize("wrap", [lambda x: x.numpy(), TensorDataset, "loader", "dict"])
def test_inputs_as_users_have_them(model, x, wrap):
    options = {}
    if wrap == "loader":
        given = DataLoader(TensorDataset(x, torch.zeros(7)), batch_size=3)
    elif wrap == "dict":
        given = {"pixels": x, "ids": torch.arange(7)}
        options["forward"] = lambda m, batch: m(batch["pixels"])
    else:
        given = wrap(x)
    v = normal(7)
    for outputs in ("trace", "pseudo"):
        op = ntk_operator(model, given, outputs=outputs, **options)
        assert relative(op @ v.numpy(), formed(model, x, outputs) @ v) < 1e-12
        assert relative(op.diagonal(), formed(model, x, outputs).diagonal()) < 1e-12


def test_surrounding_modes_do_not_matter(model, x):
    op = ntk_operator(model, x)
    v = normal(7)
    found, diagonal = op @ v, op.diagonal()
    for mode in (torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
        with mode:
            assert torch.equal(op @ v, found)
            assert torch.equal(op.diagonal(), diagonal)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"outputs": "diagonal"}, "forward="),
        ({"outputs": "mean"}, "outputs=.mean."),
        ({"parameters": ["nope"]}, "names"),
        ({"dtype": torch.float16}, "float32"),
        ({"memory": 100}, "at least"),
        ({"memory": "lots"}, "bytes"),
        ({"x": np.full((3, 5), np.nan)}, "finite"),
        ({"x": np.zeros((0, 5))}, "at least one row"),
        ({"x": np.zeros((2, 4))}, "shape"),
    ],
)
def test_bad_arguments(model, x, change, words):
    arguments = {"x": x} | change
    with pytest.raises(InputError, match=words):
        ntk_operator(model, arguments.pop("x"), **arguments)


def test_one_output_of_many_as_the_message_says(model, x):
    op = ntk_operator(model, x, forward=lambda model, batch: model(batch)[:, 1:2])
    v = normal(7)
    assert relative(op @ v, reference.ntk(model, x, outputs="diagonal")[:, :, 1] @ v) < 1e-12


@pytest.mark.parametrize("outputs", KINDS)
@pytest.mark.parametrize(
    "change",
    [
        lambda v: v[:-1],
        lambda v: torch.cat([v, v]),
        lambda v: v.float(),
        lambda v: v.to(torch.int64),
        lambda v: v.to(torch.complex128),
        lambda v: v[:, None, None],
        lambda v: v[0],
        lambda v: v * math.nan,
        lambda v: v / 0,
        lambda v: "text",
    ],
)
def test_bad_vectors(model, x, outputs, change):
    op = ntk_operator(model, x, outputs=outputs)
    with pytest.raises(InputError) as caught:
        op @ change(normal(op.shape[0]))
    assert caught.value.hint


def test_full_weights_must_be_flattened(model, x):
    op = ntk_operator(model, x, outputs="full")
    weights = normal(7, 3)
    with pytest.raises(InputError, match="reshape"):
        op @ weights
    expected = torch.einsum("nmcd,md->nc", reference.ntk(model, x, outputs="full"), weights)
    assert relative((op @ weights.reshape(-1)).reshape(7, 3), expected) < 1e-12


class MixesRows(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        return self.out(x - x.mean(0, keepdim=True))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)), UnsupportedModelError, "eval"),
        (lambda: nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.1)), UnsupportedModelError, "eval"),
        (lambda: nn.Sequential(nn.Linear(5, 3), nn.Flatten(0)), UnsupportedModelError, "forward="),
        (MixesRows, VerificationError, "mix"),
        (lambda: nn.ReLU(), InputError, "parameters"),
    ],
)
def test_models_that_cannot_be_analyzed_are_refused(make, error, words, x):
    with pytest.raises(error, match=words):
        ntk_operator(make().double(), x)


def test_a_product_that_overflows_is_refused(x):
    model = nn.Linear(5, 1)
    op = ntk_operator(model, torch.full((3, 5), 1e15))
    with pytest.raises(NumericalError, match="float64"):
        op @ torch.full((3,), 1e30)


def test_it_prints_what_it_is(model, x):
    text = repr(ntk_operator(model, x, outputs="full"))
    assert "full kernel of 7 rows" in text
    assert "(21, 21)" in text


def test_an_operator_refuses_to_be_pickled_and_is_its_own_copy():
    operator = ntk_operator(nn.Linear(2, 3), torch.eye(2))
    assert copy.copy(operator) is copy.deepcopy(operator) is operator
    with pytest.raises(InputError, match="in the other process"):
        pickle.dumps(operator)
