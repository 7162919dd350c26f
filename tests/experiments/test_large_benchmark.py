"""Conjugate gradients and the factor agree on a small stored kernel."""

import torch

from experiments.benchmarks.large import solves


def test_both_methods_leave_the_same_rows_out(tmp_path):
    path = str(tmp_path / "kernel")
    assert solves.build(path, 64)["n"] == 64
    cg, factor = solves.by_gradients(path), solves.by_factor(path, "64MiB")
    assert cg["residual"] <= 1e-9
    assert factor["residual"] <= 1e-12
    left_out = [torch.tensor(part["left_out"], dtype=torch.float64) for part in (cg, factor)]
    assert torch.allclose(left_out[0], left_out[1], rtol=1e-6, atol=1e-8)
    assert 0 < factor["resident_before_bytes"] <= factor["peak_bytes"]
