"""kernelmem.core.files.weight_files: what fits is taken, what holds code or does not fit is refused."""

import pickle
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from kernelmem.core.errors import FileCorruptError, InputError, KernelmemError
from kernelmem.core.files.weight_files import fit_weights, load_weights, weights_bytes, weights_sha256, without_prefix


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_round_trip(model, tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save(model.state_dict(), path)
    else:
        path.write_bytes(weights_bytes(model))
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    assert weights_sha256(other) != weights_sha256(model)
    fit_weights(other, load_weights(path), "w")
    assert weights_sha256(other) == weights_sha256(model)


class Bomb:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_code_in_a_file_never_runs(tmp_path, capsys):
    path = tmp_path / "w.pt"
    torch.save({"weight": Bomb()}, path)
    with pytest.raises(FileCorruptError, match=r"it calls print.*tensors only"):
        load_weights(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(FileCorruptError, match="tensors only") as refused:
        load_weights(path)
    assert "weights_only" not in str(refused.value)  # torch's hint to run it all the same
    assert "never run" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_altered_bytes_are_refused_or_are_weights(model, tmp_path, suffix):
    path, whole = tmp_path / f"w{suffix}", tmp_path / f"whole{suffix}"
    torch.save(model.state_dict(), whole) if suffix == ".pt" else whole.write_bytes(weights_bytes(model))
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.integers(0, whole.stat().st_size, 150):
        altered = bytearray(whole.read_bytes())
        altered[place] ^= int(rng.integers(1, 256))
        path.write_bytes(altered)
        try:
            fit_weights(model, load_weights(path), "w")
        except KernelmemError:
            refused += 1
    assert refused > 10


def test_every_altered_byte_of_our_files_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    whole = weights_bytes(nn.Linear(2, 1))
    for place in range(len(whole)):
        altered = bytearray(whole)
        altered[place] ^= 0x04
        path.write_bytes(altered)
        with pytest.raises(FileCorruptError):
            load_weights(path)


@pytest.mark.parametrize(
    "state",
    [
        {"w": torch.zeros(1).expand(10**6, 10**6)},
        {"w": torch.zeros(10**9, 10**9, device="meta")},
        {3: torch.zeros(1)},
        {"w": [torch.zeros(1)]},
        torch.zeros(2),
    ],
)
def test_a_state_that_is_not_one_is_refused(state, tmp_path):
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises((FileCorruptError, InputError)):
        load_weights(tmp_path / "w.pt")


def test_a_compressed_archive_is_not_unpacked(tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"w": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as smaller:
        for name in archive.namelist():
            smaller.writestr(name, archive.read(name))
    with pytest.raises(FileCorruptError, match="larger than the file"):
        load_weights(tmp_path / "z.pt")


def test_any_memory_layout_is_written():
    model = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    assert torch.equal(safetensors.torch.load(weights_bytes(model))["weight"], model.weight)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_truncated_files(model, tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save(model.state_dict(), path)
    else:
        safetensors.torch.save_file(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FileCorruptError):
        load_weights(path)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "net.module."])
@pytest.mark.parametrize("key", ["model", "state.model", "with.dot"])
def test_nested_checkpoints_and_prefixes(model, tmp_path, key, prefix):
    state = {prefix + name: value for name, value in model.state_dict().items()}
    checkpoint: object = state
    for name in [key] if key == "with.dot" else reversed(key.split(".")):
        checkpoint = {name: checkpoint, "epoch": 3, "optimizer": {"state": {0: {"step": torch.zeros(())}}}}
    path = tmp_path / "w.pt"
    torch.save(checkpoint, path)
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    fit_weights(other, without_prefix(load_weights(path, key=key), other), "w")
    assert weights_sha256(other) == weights_sha256(model)
    for wrong in ("absent", "model.absent", "epoch", "optimizer", ""):
        with pytest.raises(InputError, match=r"entry|tensors"):
            load_weights(path, key=wrong)


def test_the_hint_names_the_entry_of_a_checkpoint(model, tmp_path):
    torch.save({"epoch": 3, "ema": model.state_dict()}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="--weights-key ema"):
        load_weights(tmp_path / "w.pt")


def test_nested_tensors_are_not_larger_than_the_file(tmp_path):
    torch.save({"model": {"w": torch.zeros(1).expand(10**6, 10**6)}}, tmp_path / "w.pt")
    with pytest.raises(FileCorruptError, match="larger than its data"):
        load_weights(tmp_path / "w.pt", key="model")


def test_a_prefix_stays_where_it_does_not_help(model):
    for state in (
        model.state_dict(),
        {"module.0.weight": torch.zeros(1)},
        {"a.b": torch.zeros(1), "c": torch.ones(1)},
        {},
    ):
        assert list(without_prefix(state, model)) == list(state)


def test_unknown_files(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="safetensors"):
        load_weights(tmp_path / "w.bin")
    with pytest.raises(InputError, match="existing"):
        load_weights(tmp_path / "absent.pt")
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "c.pt")
    with pytest.raises(InputError, match="state_dict"):
        load_weights(tmp_path / "c.pt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("0.bias"), "1 missing .*0.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 unexpected .*extra"),
        (lambda s: s.update({"0.weight": torch.zeros(4, 5)}), r"0.weight \(4, 5\), in the model \(4, 3\)"),
        (lambda s: s.update({"0.bias": torch.full((4,), torch.nan)}), "NaN"),
        (
            lambda s: s.update({"0.bias": torch.ones(4, dtype=torch.int8)}),
            "1 of a different type .*0.bias strided int8",
        ),
        (
            lambda s: s.update({"0.bias": torch.ones(4, dtype=torch.complex64)}),
            "complex64, in the model strided float32",
        ),
        (lambda s: s.update({"0.weight": s["0.weight"].to_sparse()}), "sparse_coo float32"),
    ],
)
def test_weights_that_do_not_fit(model, change, words):
    state = dict(model.state_dict())
    before = weights_sha256(model)
    change(state)
    with pytest.raises(InputError, match=words):
        fit_weights(model, state, "w")
    assert weights_sha256(model) == before
