"""Kernels that audits and accounts keep in a file: tiles that fit, and refusals whose hints their callers can follow."""

import shutil
from collections import namedtuple

import pytest
import torch
from torch import nn

import kernelmem as km
from kernelmem.kernels.large.temporary_store import temporary_ntk_store, temporary_store_plan

X = torch.randn(600, 5, generator=torch.Generator().manual_seed(0))
MODEL = nn.Linear(5, 3)


def plan(path, memory):
    return temporary_store_plan(MODEL, X, path, tile=512, forward=None, memory=memory)


def test_tiles_have_fewer_rows_where_memory_is_short(tmp_path):
    assert plan(tmp_path / "k", "1GiB").schedule.tile == 512
    with temporary_ntk_store(MODEL, X, tmp_path / "k", tile=512, forward=None, memory="4MiB", progress=False) as store:
        assert 1 < store.layout.tile < 512
        torch.testing.assert_close(store.rows(0, 600), km.ntk(MODEL, X, dtype=torch.float64))


def test_refusals_name_what_helps(tmp_path, monkeypatch):
    with pytest.raises(km.InputError, match="memory of") as error:
        plan(tmp_path / "k", 100)
    assert "more memory" in error.value.hint
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(km.InputError, match="free disk") as error:
        plan(tmp_path / "k", "1GiB")
    assert "TMPDIR" in error.value.hint
    assert "path" not in error.value.hint
