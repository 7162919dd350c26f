"""Laws of the tangent engine on random programs: the kernel of the definition, and a refusal if rows are mixed."""

from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core.errors import InputError, KernelmemError, UnsupportedModelError
from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk
from kernelmem.kernels.operator import ntk_operator
from kernelmem.tangents.sketch import tangent_features
from kernelmem.testing.closeness import assert_close, scale_of
from tests.profiles import examples
from tests.tangents.programs.mixing import MIXING
from tests.tangents.programs.program import definition, number_of_rows, programs, row, rows_are_mixed

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch about the models: checkpoints, packed sequences

KINDS = ("trace", "trace", "diagonal", "full", "pseudo")
FLOAT64, FLOAT32 = 1e-10, 1e-4  # of the norms of the tangents: tests/README.md, up to 4e5 and 800 terms
BFLOAT16 = 16 * 2**-8


def tolerance_of(program):
    if program.dtype == torch.float64:
        return FLOAT32 if "in_float32" in program.blocks else FLOAT64
    return BFLOAT16 if "in_autocast" in program.blocks else FLOAT32


def unless_refused(program, call):
    """The result of ``call``, or None if it was refused and the program may be."""
    try:
        return call()
    except KernelmemError:
        if not program.may_be_refused:
            raise
        return None


def assert_defined(program, actual, left, right=None, outputs="trace", label="kernel"):
    """Assert that a kernel is that of the Jacobians ``left`` and ``right``, up to the rounding of its dtype."""
    if actual is None:
        return
    assert actual.dtype == program.dtype
    left, right = left.double(), (left if right is None else right).double()
    expected = reference.kernel_of(left, right, outputs)
    assert_close(actual, expected, tolerance_of(program), scale_of(left, right), label)


@examples(0.75)
@given(program=programs(), outputs=st.sampled_from(KINDS))
def test_the_kernel_is_that_of_the_definition(program, outputs):
    J = definition(program.model, program.x)[1]
    K = unless_refused(program, lambda: ntk(program.model, program.x, outputs=outputs))
    assert_defined(program, K, J, outputs=outputs)


@examples(0.2)
@given(program=programs(), outputs=st.sampled_from(KINDS), m=st.integers(1, 8))
def test_two_sets_of_rows(program, outputs, m):
    y = program.inputs(m, stream=1)
    left, right = (definition(program.model, rows)[1] for rows in (program.x, y))
    K = unless_refused(program, lambda: ntk(program.model, program.x, y, outputs=outputs))
    assert_defined(program, K, left, right, outputs)


@examples(0.15)
@given(program=programs(), target=st.sampled_from(["margin", "loss", ("logit", 0)]))
def test_targets_of_outputs_and_labels(program, target):
    """Kernels of a scalar of the outputs: its direction differs from row to row."""
    outputs, J = definition(program.model, program.x)
    n, C = outputs.shape
    if C == 1 and isinstance(target, str):  # one logit counts as two classes
        return
    labels = torch.arange(n) % C
    f = outputs.requires_grad_()
    chosen = f[torch.arange(n), labels]
    others = f.masked_fill(torch.nn.functional.one_hot(labels, C).bool(), -torch.inf)
    value = {"margin": lambda: chosen - others.amax(1), "loss": lambda: f.logsumexp(1) - chosen}
    value = value[target]() if isinstance(target, str) else f[:, 0]
    (direction,) = torch.autograd.grad(value.sum(), f)
    tangents = torch.einsum("nc,ncp->np", direction, J)[:, None]
    K = unless_refused(program, lambda: ntk(program.model, program.x, target=target, labels=labels))
    assert_defined(program, K, tangents)


@examples(0.3)
@given(program=programs(at_least=tuple(MIXING), max_blocks=2))
def test_a_program_that_mixes_rows_is_refused(program):
    if rows_are_mixed(program.model, program.x):
        with pytest.raises(KernelmemError):
            ntk(program.model, program.x)
    else:  # such as an expert that is not full: the number of the definition, or a refusal
        with suppress(KernelmemError):
            assert_defined(program, ntk(program.model, program.x), definition(program.model, program.x)[1])


@examples(0.2)
@given(program=programs(), outputs=st.sampled_from(KINDS))
def test_a_program_in_float32(program, outputs):
    program = program.in_float32()
    J = definition(program.model, program.x)[1]
    K = unless_refused(program, lambda: ntk(program.model, program.x, outputs=outputs))
    assert_defined(program, K, J, outputs=outputs)


@examples(0.15)
@given(program=programs(rows=(6, 13)), outputs=st.sampled_from(KINDS), factor=st.sampled_from([1, 2, 4]))
def test_several_passes_and_tiles(program, outputs, factor):
    """The smallest memory that is accepted, or a few times as much."""
    J = definition(program.model, program.x)[1]
    for exponent in range(12, 31, 2):
        memory = factor * 2**exponent
        try:
            K = unless_refused(
                program, lambda memory=memory: ntk(program.model, program.x, outputs=outputs, memory=memory)
            )
        except InputError:
            continue
        return assert_defined(program, K, J, outputs=outputs)
    raise AssertionError("refused with 1 GiB")


@examples(0.15)
@given(program=programs(), seed=st.integers(0, 99))
def test_layers_and_parameters_add_up(program, seed):
    J = definition(program.model, program.x)[1]
    layers = unless_refused(program, lambda: ntk(program.model, program.x, by="layer"))
    assert_defined(program, None if layers is None else sum(layers.values()), J, label="sum over layers")
    names = [name for name, p in program.model.named_parameters() if p.requires_grad]
    sizes = [p.numel() * (1 + p.is_complex()) for p in program.model.parameters() if p.requires_grad]
    chosen = torch.rand(len(names), generator=torch.Generator().manual_seed(seed)) < 0.5
    chosen[seed % len(names)] = True
    subset = [name for name, take in zip(names, chosen.tolist(), strict=True) if take]
    J = J[..., torch.cat([take.expand(size) for take, size in zip(chosen, sizes, strict=True)])]
    if J.any():  # a kernel that is zero is refused: no output depends on the parameters
        K = unless_refused(program, lambda: ntk(program.model, program.x, parameters=subset))
        assert_defined(program, K, J, label="some parameters")


@examples(0.2)
@given(program=programs(), outputs=st.sampled_from(["trace", "pseudo"]))
def test_products_of_the_operator(program, outputs):
    J = definition(program.model, program.x)[1]
    K = reference.kernel_of(J, J, outputs)
    v = torch.randn(program.n, 2, generator=torch.Generator().manual_seed(0), dtype=J.dtype)
    products = lambda: ntk_operator(program.model, program.x, outputs=outputs) @ v  # noqa: E731
    try:
        product = unless_refused(program, products)
    except UnsupportedModelError as error:
        if "products J u cannot be computed" not in error.given:  # no second derivative: cdist, EmbeddingBag
            raise
        return
    if product is not None:
        assert_close(product, K @ v, tolerance_of(program), scale_of(J) * float(v.abs().sum(0).max()), "product")


@examples(0.15)
@given(program=programs())
def test_features_of_a_row_do_not_depend_on_the_other_rows(program):
    features = unless_refused(program, lambda: tangent_features(program.model, program.x, 32, seed=0))
    if features is None:
        return
    scale = scale_of(definition(program.model, program.x)[1]) ** 0.5
    for i in range(0, number_of_rows(program.x), 4):
        (alone,) = tangent_features(program.model, row(program.x, i), 32, seed=0)
        # A feature is Σ_p s_p J_p with signs s: at most |J|₁ <= √P |J|₂.
        P = sum(p.numel() for p in program.model.parameters())
        assert_close(features[i], alone, tolerance_of(program) * P**0.5, scale, f"features of row {i}")
