"""Results of all analyses of a run: saved and loaded, printed on one screen, shown as a table, compared by identity."""

from dataclasses import fields

import pytest
import torch

from kernelmem.core.errors import FileCorruptError
from kernelmem.core.files.result_files import Result
from kernelmem.trajectory import (
    DomingosKernelMachine,
    ExactKernelMachine,
    Influence,
    Ledger,
    LedgerOptions,
    PathKernel,
    domingos_kernel_machine,
    exact_kernel_machine,
    influence,
    ledger,
    path_kernel,
)
from tests.trajectory.path_kernel.test_path_kernel import data, small, train

KINDS = (Ledger, Influence, PathKernel, ExactKernelMachine, DomingosKernelMachine)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One result of every class, for the same run of plain gradient descent."""
    model, (x, y), (x_test, _) = small(), data(), data(3, seed=1)
    run = train(tmp_path_factory.mktemp("results") / "run", model)
    return (
        ledger(run, model, x_test, options=LedgerOptions(history=True)),
        influence(run, model, x_test),
        path_kernel(run, model, x_test, x),
        exact_kernel_machine(run, model, x_test),
        domingos_kernel_machine(run, model, x_test, data=(x, y)),
    )


@pytest.mark.parametrize("i", range(len(KINDS)), ids=[kind.__name__ for kind in KINDS])
def test_every_field_survives_the_file(results, tmp_path, i):
    result, kind = results[i], KINDS[i]
    assert type(result) is kind
    path = result.save(tmp_path / "result.safetensors")
    loaded = kind.load(path)
    for field in fields(kind):
        before, after = getattr(result, field.name), getattr(loaded, field.name)
        if isinstance(before, Result):
            before, after = before.to_frame().to_csv(), after.to_frame().to_csv()
        assert torch.equal(before, after) if isinstance(before, torch.Tensor) else before == after, field.name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileCorruptError):
        kind.load(path)
    with pytest.raises(FileCorruptError):
        KINDS[i - 1].load(result.save(path))


@pytest.mark.parametrize("i", range(len(KINDS)), ids=[kind.__name__ for kind in KINDS])
def test_text_and_table_fit_on_one_screen(results, i):
    result = results[i]
    lines = repr(result).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 160
    assert "tensor(" not in repr(result)
    assert len(result.to_frame()) > 0
    assert result._repr_html_().startswith("<pre>")


def test_results_are_compared_by_identity(results):
    for result in results:
        assert result == result
        assert (result == results[0]) is (result is results[0])
        assert len({result, result}) == 1
