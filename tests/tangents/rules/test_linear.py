"""kernelmem.tangents.rules.linear: closed forms, and the factors against the dense Jacobian."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk
from kernelmem.tangents.rules import RULES
from kernelmem.testing.cases import with_random_weights
from kernelmem.testing.closeness import assert_close, scale_of
from kernelmem.testing.modules import Apply
from tests.profiles import examples


def rows(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("S", [1, 2, 3, 4])
def test_linear_on_sequences_by_hand(S):
    """f = mean_s (W x_s + b): the kernel of the mean input, whichever axis equals which."""
    model, x = with_random_weights(nn.Sequential(nn.Linear(4, 4), Apply(lambda h: h.mean(1)))), rows(4, S, 4)
    inner = x.mean(1) @ x.mean(1).T + 1
    assert_close(ntk(model, x), 4 * inner, 1e-13, 4 * float(inner.max()))


def test_factors_give_the_dense_jacobian(assert_factors):
    model, x = (
        with_random_weights(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(15, 2))),
        rows(4, 3, 4),
    )
    assert_factors(model, x, "0.weight")


def test_a_matrix_on_the_right_is_a_transposed_weight():
    class Right(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.zeros(4, 3))

        def forward(self, x):
            return x @ self.matrix

    x = rows(5, 4)
    gram = x @ x.T
    assert_close(ntk(with_random_weights(Right()), x), 3 * gram, 1e-14, 3 * float(gram.max()))


def test_blocks_of_rows_with_weights_of_their_own():
    """run_blocks: S weights on S equal blocks of the first axis."""
    rule, x = RULES[0], rows(6, 2, 4)
    weights, biases = rows(3, 5, 4, seed=2), rows(3, 5, seed=3)
    call = rule.read(F.linear, (x, weights[0].requires_grad_(), biases[0]), {}, lambda tensor: tensor.requires_grad)
    expected = torch.cat([F.linear(x[2 * s : 2 * s + 2], weights[s], biases[s]) for s in range(3)])
    torch.testing.assert_close(call.run_blocks({"weight": weights, "bias": biases}), expected)


class Product(nn.Module):
    """One parameter in a product with the (transformed) rows, between layers with parameters."""

    def __init__(self, run, shape, added=None):
        super().__init__()
        self.inner, self.run = nn.Linear(4, 4), run
        self.weight = nn.Parameter(torch.zeros(shape))
        self.bias = None if added is None else nn.Parameter(torch.zeros(added))

    def forward(self, x):
        h = torch.tanh(self.inner(x))
        output = self.run(h, self.weight) if self.bias is None else self.run(h, self.weight, self.bias)
        return torch.tanh(output).reshape(len(x), -1)


# h is (n, 3, 4); the shape of the weight, and of what is added
PRODUCTS = {
    "F.linear": (lambda h, w: F.linear(h, w), (5, 4)),
    "F.linear with a vector": (lambda h, w: F.linear(h, w), (4,)),
    "F.linear with a vector and a bias": (lambda h, w, b: F.linear(h, w, b), (4,), ()),
    "F.linear of a reshaped weight": (lambda h, w: F.linear(h, w.view(5, 4)), (20,)),
    "F.linear of a part of a weight": (lambda h, w, b: F.linear(h, w[1:3], b[::2]), (5, 4), (4,)),
    "F.linear of an expanded weight": (lambda h, w: F.linear(h, w.expand(3, 4)), (1, 4)),
    "F.linear with keywords": (lambda h, w, b: F.linear(input=h, weight=w, bias=b), (5, 4), (5,)),
    "matmul": (lambda h, w: h @ w, (4, 5)),
    "matmul of a transposed view": (lambda h, w: h @ w.mT, (5, 4)),
    "matmul with a vector": (lambda h, w: h @ w, (4,)),
    "matmul from the left": (lambda h, w: w @ h.mT, (5, 4)),
    "vector from the left": (lambda h, w: w @ h, (3,)),
    "weight on the positions": (lambda h, w: torch.matmul(w, h), (2, 3)),
    "mm": (lambda h, w: torch.mm(h.flatten(0, 1), w).view(len(h), -1), (4, 5)),
    "mv": (lambda h, w: torch.mv(h[:, 0], w)[:, None], (4,)),
    "addmm, as GPT-2": (lambda h, w, b: torch.addmm(b, h.reshape(-1, 4), w).view(*h.shape[:-1], -1), (4, 5), (5,)),
    "addmm of the rows": (lambda h, w: torch.addmm(h[:, 0], h[:, 1], w, beta=0.5, alpha=2.0), (4, 4)),
    "addmm with factors": (lambda h, w, b: torch.addmm(b, h[:, 1], w, beta=-1, alpha=3), (4, 5), (1, 5)),
    "addmm without its first term": (lambda h, w, b: torch.addmm(b, h[:, 1], w, beta=0), (4, 5), (5,)),
    "Tensor.addmm": (lambda h, w, b: b.addmm(h[:, 1], w), (4, 5), (5,)),
    "addmv": (lambda h, w, b: torch.addmv(b, h[:, 1], w)[:, None], (4,), (1,)),
    "bmm, a matrix per position": (lambda h, w: torch.bmm(h.transpose(0, 1), w).transpose(0, 1), (3, 4, 2)),
    "baddbmm": (lambda h, w, b: torch.baddbmm(b, h.transpose(0, 1), w).transpose(0, 1), (3, 4, 2), (3, 1, 2)),
    "experts": (lambda h, w: (h[:, None] @ w).sum(1), (2, 4, 5)),
    "heads": (lambda h, w: h.unflatten(-1, (2, 2)).transpose(1, 2) @ w, (2, 2, 5)),
    "one matrix with a batch axis": (lambda h, w: h @ w, (1, 4, 5)),
    "tensordot": (lambda h, w: torch.tensordot(h, w, 1), (4, 5)),
    "tensordot of two axes": (lambda h, w: torch.tensordot(h, w, ([1, 2], [2, 0])), (4, 5, 3)),
    "einsum bsd,dh->bsh": (lambda h, w: torch.einsum("bsd,dh->bsh", h, w), (4, 5)),
    "einsum hd,bsd->bhs": (lambda h, w: torch.einsum("hd,bsd->bhs", w, h), (5, 4)),
    "einsum ...d,hd": (lambda h, w: torch.einsum("...d,hd", h, w), (5, 4)),
    "einsum bsd,sdh->bh": (lambda h, w: torch.einsum("bsd,sdh->bh", h, w), (3, 4, 2)),
    "einsum bsd,sdh->bsh": (lambda h, w: torch.einsum("bsd,sdh->bsh", [h, w]), (3, 4, 2)),
    "einsum bsd,dnh->bsnh": (lambda h, w: torch.einsum("bsd,dnh->bsnh", h, w), (4, 2, 3)),
    "einsum bsd,dh->bh": (lambda h, w: torch.einsum("bsd,dh->bh", h, w), (4, 5)),
    "einsum bsd,d->bs": (lambda h, w: torch.einsum("bsd,d->bs", h, w), (4,)),
    "einsum bsd,sd->bsd": (lambda h, w: torch.einsum("bsd,sd->bsd", h, w), (3, 4)),
    "einsum of a transposed view": (lambda h, w: torch.einsum("bsd,dh->bsh", h, w.T), (5, 4)),
    "bilinear": (lambda h, w: F.bilinear(h, h.square(), w), (5, 4, 4)),
    "bilinear with a bias": (lambda h, w, b: F.bilinear(h, h.square(), w, b), (5, 4, 4), (5,)),
    "bilinear of a reshaped weight": (lambda h, w: F.bilinear(h, h.square(), w.view(5, 4, 4)), (20, 4)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_every_notation_of_a_product(name, assert_covered):
    assert_covered(Product(*PRODUCTS[name]), rows(4, 3, 4))


@pytest.mark.parametrize("name", ["addmm, as GPT-2", "experts", "tensordot of two axes", "bilinear with a bias"])
def test_products_in_float32(name, assert_covered):
    assert_covered(Product(*PRODUCTS[name]), rows(4, 3, 4), torch.float32)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    "name", ["addmm, as GPT-2", "experts", "heads", "matmul from the left", "einsum bsd,dnh->bsnh"]
)
def test_batches_of_one_and_two(name, n, assert_covered):
    assert_covered(Product(*PRODUCTS[name]), rows(n, 3, 4))


def test_weights_that_are_used_in_two_layouts(assert_covered):
    """One weight as it is and transposed: entries of the two tangents are added in the order of the parameter."""
    model = Product(lambda h, w: F.linear(torch.tanh(h @ w), w) + torch.einsum("bsd,hd->bsh", h, w), (4, 4))
    assert_covered(model, rows(4, 3, 4))


def test_a_projection_that_is_split(assert_covered):
    """Views of parts of one weight, as in attention with one matrix for queries, keys and values."""

    def run(h, w):
        q, k, v = (F.linear(h, part) for part in w.split(4))
        return torch.softmax(q @ k.mT, -1) @ v

    assert_covered(Product(run, (12, 4)), rows(4, 3, 4))


@pytest.mark.parametrize("routed", [False, True])
def test_grouped_products(routed):
    """Rows that are sorted by expert, each with the matrix of its expert; routed rows lie in another order there."""

    def run(h, w):
        tokens = h.flatten(0, 1)
        expert = (tokens[:, 0] > 0).long() * 2 if routed else torch.zeros(len(tokens), dtype=torch.long)
        order = torch.argsort(expert, stable=True)
        ends = torch.bincount(expert, minlength=len(w)).cumsum(0).int()
        outputs = F.grouped_mm(tokens[order], w.transpose(-2, -1), offs=ends)
        return torch.zeros_like(outputs).index_copy(0, order, outputs)

    model, x = with_random_weights(Product(run, (3, 8, 4)), dtype=torch.float32), rows(4, 3, 4).float()
    J = reference.jacobian(model, x)  # torch has no grouped product in float64
    assert_close(ntk(model, x), reference.kernel_of(J, J), 1e-4, scale_of(J))


@examples(0.5)
@given(data=st.data())
def test_einsum_of_any_two_operands(assert_covered, data):
    """Random labels: shared, contracted, free in either operand, in any order."""
    letters = "bsdegh"
    sizes = dict(zip(letters, (4, 2, 3, 2, 1, 3), strict=True))
    x_labels = data.draw(st.permutations(["b", *data.draw(st.sets(st.sampled_from("sdeg")))]))
    w_labels = data.draw(st.permutations(sorted(data.draw(st.sets(st.sampled_from("sdegh"), min_size=1)))))
    outside = {*x_labels, *w_labels} - {"b"}
    summed = {letter for letter in outside if data.draw(st.booleans()) and letter in x_labels}
    result = data.draw(st.permutations(sorted({"b", *outside} - summed)))
    assume(len(result) > 1)
    equation = f"{''.join(x_labels)},{''.join(w_labels)}->{''.join(result)}"
    first = data.draw(st.booleans())

    def run(h, w):
        h = h[..., : torch.Size(sizes[c] for c in x_labels if c != "b").numel()]
        h = h.reshape(len(h), *(sizes[c] for c in x_labels if c != "b")).movedim(0, x_labels.index("b"))
        if first:
            outputs = torch.einsum(equation, h, w)
        else:
            left, right = equation.partition("->")[0].split(",")
            outputs = torch.einsum(f"{right},{left}->{''.join(result)}", w, h)
        return outputs.movedim(result.index("b"), 0).flatten(1)

    class Einsum(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 12)
            self.weight = nn.Parameter(torch.zeros([sizes[c] for c in w_labels]))

        def forward(self, x):
            return torch.tanh(run(torch.tanh(self.inner(x)), self.weight))

    assert_covered(Einsum(), rows(4, 4))
