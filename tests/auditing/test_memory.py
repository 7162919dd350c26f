"""An audit that keeps kernels in files, because they exceed its memory, gives the results of the audit in memory."""

import importlib

import numpy as np
import pytest
import torch

import kernelmem as km
from kernelmem.auditing.data_checks import AuditKernel, cosine_blocks, kernel_entries, kernel_of_rows, row_kernel
from kernelmem.auditing.scores import kernel_answer
from kernelmem.compression.accounting import network as account_network
from kernelmem.compression.online import kernel_scores as online_scores
from kernelmem.kernel_machines.model_selection import ridge_selection
from kernelmem.kernel_machines.solvers import tridiagonal
from tests.kernels.store.stores import stored

MEMORY = 700_000  # bytes: less than the eigendecompositions of 160 rows in memory
account_module = importlib.import_module("kernelmem.compression.accounting.account")


@pytest.fixture
def small_tiles(monkeypatch):
    """Make tiles and blocks of columns so small that a kernel of a few rows can exceed a memory that suffices for them."""
    monkeypatch.setattr(row_kernel, "TILE", 32)
    monkeypatch.setattr(row_kernel, "STREAMED_COLUMNS", 256)
    monkeypatch.setattr(row_kernel, "MATRICES", 100)
    monkeypatch.setattr(tridiagonal, "BLOCK", 16)
    monkeypatch.setattr(account_module, "MATRICES", 100)
    monkeypatch.setattr(account_module, "STREAMED_COLUMNS", 256)
    monkeypatch.setattr(account_network, "TILE", 32)
    monkeypatch.setattr(online_scores, "STREAMED_COLUMNS", 64)
    monkeypatch.setattr(kernel_answer, "POWER_REPETITIONS", 3)  # as slow as everything else, and without the kernel
    monkeypatch.setattr(kernel_answer, "BOOTSTRAPS", 20)


def test_results_do_not_depend_on_the_memory(binary, small_tiles, without_blind_baseline, monkeypatch):
    model, (x, y), test = binary
    train = torch.cat([x[:-1], x[:1]]), torch.cat([y[:-1], y[:1]])  # a copy does not represent its group
    calls = []

    def counted(store):
        calls.append(store.shape[0])
        return tridiagonal.tridiagonalize(store)

    monkeypatch.setattr(ridge_selection, "tridiagonalize", counted)
    options = km.AuditOptions(date="2026-01-02", near_duplicate_cosine=1 - 1e-9)
    streamed = km.audit(model, train, test, options=options, memory=MEMORY)
    assert calls == [159]
    monkeypatch.setattr(row_kernel, "MATRICES", 1)
    monkeypatch.setattr(account_module, "MATRICES", 1)
    expected = km.audit(model, train, test, options=options)
    first, second = streamed.to_frame(), expected.to_frame()
    assert list(first.columns) == list(second.columns)
    for name in first.columns:
        if first[name].dtype.kind == "f":
            np.testing.assert_allclose(first[name], second[name], rtol=1e-9, atol=1e-9, err_msg=name)
        else:
            assert (first[name] == second[name]).all(), name
    a, b = streamed.document, expected.document
    assert a.compression.status == b.compression.status == "estimated"
    assert a.compression.sentence == b.compression.sentence
    assert a.how_much.p_value == b.how_much.p_value
    assert (a.verdict, a.gates, a.leak, a.power) == (b.verdict, b.gates, b.leak, b.power)
    for row, other in zip(a.rows, b.rows, strict=True):
        assert (row.index, row.reason) == (other.index, other.reason)
        assert [r.index for r in row.influential] == [r.index for r in other.influential]


def test_too_little_memory_is_refused_before_the_kernel(binary, small_tiles):
    model, train, test = binary
    with pytest.raises(km.InputError, match="memory of") as error:
        km.audit(model, train, test, memory=300_000)
    assert 'memory="' in error.value.hint


def test_blocks_and_entries_of_a_kernel_in_a_file(tmp_path, small_tiles):
    x = torch.randn(70, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    K = x @ x.T
    K = (K + K.T) / 2
    rows = torch.arange(0, 70, 3)

    def read(kernel: AuditKernel) -> list[torch.Tensor]:
        with kernel_of_rows(kernel, rows) as part, kernel_of_rows(kernel, torch.arange(70)) as everything:
            assert everything is kernel
            every = torch.arange(len(rows))
            return [
                torch.cat([block for _, block in cosine_blocks(kernel)]),
                kernel_entries(kernel, rows, rows.flip(0)),
                kernel_entries(part, every, every),
            ]

    with stored(tmp_path / "k", K, tile=32, symmetric=True) as store:
        for first, second in zip(read(store), read(K), strict=True):
            assert torch.equal(first, second)


def test_an_account_is_refused_before_its_kernel_or_not_at_all(small_tiles):
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    model, y = torch.nn.Linear(3, 20), torch.arange(60) % 20
    need = account_module.needed_bytes(60, 20, streamed=True)
    assert need < account_module.needed_bytes(60, 20, streamed=False)
    assert need > 8 * 60 * (60 + 256)  # the online code takes more than the kernel
    assert km.account(model, (x, y), memory=need).online is not None
    with pytest.raises(km.InputError, match="60 rows, whose kernels need") as error:
        km.account(model, (x, y), memory=need - 1)
    assert error.value.hint.startswith("pass about 59 random rows")
