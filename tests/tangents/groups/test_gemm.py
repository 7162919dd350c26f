"""kernelmem.tangents.groups.gemm and float32: products in blocks equal products in one piece, by either library."""

import pytest
import torch

from kernelmem.core.errors import InputError
from kernelmem.tangents.groups import float32, gemm
from kernelmem.tangents.groups.gemm import add_gram, add_scaled_gram, row_blocks
from kernelmem.testing.closeness import assert_close


def rows(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 63, 130, 1100])
def test_blocks_cover_the_upper_half_once(n):
    blocks = row_blocks(n, symmetric=True)
    assert [start for start, _, _ in blocks] == [0, *(stop for _, stop, _ in blocks[:-1])]
    assert blocks[-1][1] == n
    assert all(first == start for start, _, first in blocks)
    blocks = row_blocks(n, symmetric=False)
    assert [start for start, _, _ in blocks] == [0, *(stop for _, stop, _ in blocks[:-1])]
    assert blocks[-1][1] == n
    assert all(first == 0 for _, _, first in blocks)
    assert all(stop - start <= gemm.LARGEST_BLOCK for start, stop, _ in blocks)


@pytest.mark.parametrize("n", [5, 130, 1100])
def test_products_equal_those_in_one_piece(n):
    left, right, scale = rows(n, 3), rows(n, 3, seed=2), rows(n, n, seed=3)
    for symmetric, other in ((False, right), (True, left)):
        plain, scaled = torch.ones(2, n, n, dtype=torch.float64)
        add_gram(plain, left, other, symmetric=symmetric)
        add_scaled_gram(scaled, left, other, scale, symmetric=symmetric)
        product = left @ other.T
        for out, expected in ((plain, 1 + product), (scaled, 1 + scale * product)):
            out, expected = (out.triu(), expected.triu()) if symmetric else (out, expected)
            assert_close(out, expected, 1e-14, float(expected.abs().max()))


def large_rows(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def chosen(monkeypatch):
    """Fix the library of float32 products, as the environment variable does."""

    def choose(name):
        monkeypatch.setenv(float32.VARIABLE, name)
        float32._choose.cache_clear()

    yield choose
    float32._choose.cache_clear()


@pytest.mark.parametrize("symmetric", [False, True])
def test_both_libraries_give_the_same_products(chosen, symmetric, monkeypatch):
    monkeypatch.setattr(gemm, "PRODUCT_NUMBERS", 300 * 40)  # several products of 40 rows each
    left, scale = large_rows(300, 400), large_rows(300, 300, seed=3)
    right = left if symmetric else large_rows(400, 300, seed=2).T  # stored transposed
    results = []
    for name in ("torch", "onednn"):
        chosen(name)
        assert float32.uses_onednn(left, right) == (name == "onednn")
        plain, scaled = torch.ones(2, 300, 300)
        add_gram(plain, left, right, symmetric=symmetric)
        add_scaled_gram(scaled, left, right, scale, symmetric=symmetric)
        results.append([plain, scaled] if not symmetric else [plain.triu(), scaled.triu()])
    product = left.double() @ right.double().T
    for expected, *computed in zip((1 + product, 1 + scale * product), *results, strict=True):
        expected = expected.triu() if symmetric else expected
        for out in computed:  # 400 summands of size 1
            assert_close(out.double(), expected, 400**0.5 * 2**-23, float(expected.abs().max()))


def test_onednn_gets_large_dense_float32_matrices_only(chosen):
    chosen("onednn")
    a = large_rows(300, 400)
    assert float32.uses_onednn(a, a)
    assert not float32.uses_onednn(a[:, :300], a[:, :300])  # rows with gaps
    assert not float32.uses_onednn(a.double(), a.double())
    assert not float32.uses_onednn(a[:10], a[:10])
    assert not float32.uses_onednn(a.clone().requires_grad_(), a)
    assert not float32.uses_onednn(a.to("meta"), a)
    with torch.no_grad():
        assert float32.uses_onednn(a.clone().requires_grad_(), a)


@pytest.mark.parametrize(("vendor", "gain", "library"), [
    ("GenuineIntel", 9.0, "torch"),
    ("AuthenticAMD", 1.4, "onednn"),
    ("AuthenticAMD", 1.1, "torch"),
])  # fmt: skip
def test_vendor_decides_and_the_measurement_confirms(chosen, monkeypatch, tmp_path, vendor, gain, library):
    measured = []
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(float32, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(float32, "measured_gain", lambda: measured.append(gain) or gain)
    chosen("")
    assert [float32.choose(), float32.choose()] == [library] * 2
    assert len(measured) == (vendor == "AuthenticAMD")  # once, and not at all where MKL wins


def test_gain_is_measured():
    assert 0.01 < float32.measured_gain() < 100


def test_unknown_library_is_refused(chosen):
    chosen("mkl")
    with pytest.raises(InputError, match="KERNELMEM_GEMM='mkl'"):
        float32.choose()
