"""Law of all loaders: a damaged or hostile file is refused by name, or read as what it was; nothing hangs or is foreign."""

import gzip
import io
import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import kernelmem as km
from kernelmem.core.files.hashed_files import hashed_safetensors, load_safetensors
from kernelmem.core.files.weight_files import load_weights, weights_bytes
from kernelmem.double_descent.sweeps.jobs import METRICS, read_chunk, write_chunk
from kernelmem.kernel_machines.equivalence.fidelity import fidelity
from kernelmem.kernel_machines.model_selection.leave_one_out import leave_one_out
from kernelmem.kernel_machines.solvers.solve import solve
from kernelmem.training.datasets import labeled_data, read_npz
from kernelmem.training.image_datasets import cifar10, mnist
from kernelmem.trajectory.influence.influence import Influence
from kernelmem.trajectory.ledger.result import Ledger
from tests.damaged_files import damaged_bytes, damaged_json
from tests.profiles import examples

RNG = np.random.default_rng(0)
K = np.eye(5) + 0.1
Y = np.arange(5) % 2
NGRAMS = km.text.ngram_model([[0, 1, 2]])
LMS = [
    km.text.causal_lm(nn.Sequential(nn.Embedding.from_pretrained(torch.eye(3)), nn.Linear(3, 3, bias=False))),
    km.text.causal_lm(nn.Embedding.from_pretrained(torch.eye(3))),
]


def a_ledger():
    m, n, k, T = 2, 3, 1, 2
    terms = [torch.from_numpy(RNG.standard_normal((m, k))) for _ in range(6)]
    return Ledger(
        torch.from_numpy(RNG.standard_normal((m, n, k))),
        *terms,
        torch.zeros(T, m, k, dtype=torch.float64),
        torch.ones(T, dtype=torch.float64),
        ("a",),
        tape="0" * 64,
    )


RESULTS = [
    a_ledger(),
    Influence(torch.from_numpy(RNG.standard_normal((2, 3, 1))), ("a",), "unrolled", "0" * 64),
    km.spectrum(K),
    fidelity(K, K[::-1].copy()),
    leave_one_out(K, Y, 0.1),
    solve(K, np.eye(5), 0.1),
    labeled_data(K, Y, K, Y, image_shape=(1, 5)),
    km.corrupt_labels(Y, 0.4, seed=0),
    km.detect(RNG.random(5), np.array([True, False, False, True, False]), seed=0),
    km.text.duplicates(["a text twice", "a text"], length=4),
    km.text.token_losses(LMS[1], [[0, 1, 2]]),
    km.text.compare(*LMS, groups={"a": [[0, 1, 2], [1, 2]]}),
    km.text.neighbour_memory(LMS[0], [[0, 1, 2], [1, 2], [2, 1]], [[0, 1], [1, 1]], k=1),
    km.text.extraction(NGRAMS, [[0, 1, 2]], unseen=[[1, 2, 0]], prefix=1, suffix=2),
    km.account(nn.Linear(5, 2), (K.astype(np.float32), Y), reference=K, progress=False),
]


def refused_or(load, path):
    """Return the result of ``load``, or None if it raises our error with the name of the file."""
    try:
        return load()
    except (km.FileCorruptError, km.InputError) as caught:
        error = caught
    assert path.name in str(error)
    assert len(str(error)) < 1500
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture(scope="module")
def saved(folder):
    """Pairs (result, bytes of its file)."""
    return [(result, result.save(folder / "result.safetensors").read_bytes()) for result in RESULTS]


@examples(5.0)
@given(st.data())
def test_results(folder, saved, data):
    result, whole = data.draw(st.sampled_from(saved))
    path = folder / "result.safetensors"
    path.write_bytes(data.draw(damaged_bytes(whole)))
    found = refused_or(lambda: type(result).load(path), path)
    assert found is None or path.read_bytes() == whole


@examples(10.0)
@given(st.data())
def test_results_with_other_content_and_a_true_hash(folder, saved, data):
    result, whole = data.draw(st.sampled_from(saved))
    tensors, metadata = load_safetensors(whole)
    values = json.loads(metadata["values"])
    if tensors and data.draw(st.booleans()):
        tensors[data.draw(st.sampled_from(sorted(tensors)))] = data.draw(st.sampled_from(OTHER_TENSORS))
    else:
        values = data.draw(damaged_json(values))
    path = folder / "result.safetensors"
    path.write_bytes(hashed_safetensors(tensors, metadata | {"values": json.dumps(values)}))
    found = refused_or(lambda: type(result).load(path), path)
    if found is not None:
        again = type(result).load(found.save(folder / "again.safetensors"))
        assert str(again) == str(found)
        assert again.save(path).read_bytes() == (folder / "again.safetensors").read_bytes()


OTHER_TENSORS = [
    torch.zeros(0),
    torch.zeros(()),
    torch.zeros(3, 0, 2),
    torch.full((2, 3, 1), torch.nan),
    torch.ones(2, 2, dtype=torch.complex64),
    torch.ones(5, dtype=torch.int8),
    torch.ones(2, 3, 1, dtype=torch.bool),
    torch.ones(5, 5, dtype=torch.bfloat16),
    torch.ones(5, dtype=torch.float8_e5m2),
    torch.full((5,), 1e300, dtype=torch.float64),
]


@examples(2.0)
@given(st.data())
def test_weights(folder, data):
    whole = weights_bytes(WEIGHTS)
    path = folder / "weights.safetensors"
    path.write_bytes(data.draw(damaged_bytes(whole)))
    found = refused_or(lambda: load_weights(path), path)
    assert found is None or hashed_safetensors(found, {"format": "pt", "writer": "kernelmem weights 1"}) == whole


torch.manual_seed(0)
WEIGHTS = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


@examples(4.0)
@given(st.data())
def test_pickled_weights(folder, data):
    stream = io.BytesIO()
    torch.save(WEIGHTS.state_dict(), stream, _use_new_zipfile_serialization=data.draw(st.booleans()))
    path = folder / "weights.pt"
    path.write_bytes(data.draw(damaged_bytes(stream.getvalue())))
    found = refused_or(lambda: load_weights(path), path)
    assert found is None or all(isinstance(value, torch.Tensor) for value in found.values())


@examples(4.0)
@given(st.data())
def test_arrays(folder, data):
    path = folder / "data.npz"
    save = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
    save(path, x_train=K, y_train=Y, x_test=K, y_test=Y, flipped=Y == 0)
    path.write_bytes(data.draw(damaged_bytes(path.read_bytes())))
    try:
        found = read_npz(path)
    except (km.FileCorruptError, km.InputError):  # an error of an array names the array
        return
    # every array has a checksum; an optional one may have lost its entry
    assert np.array_equal(found.x_train.numpy(), K)
    assert found.y_test.tolist() == Y.tolist()


@examples(2.0)
@given(st.data())
def test_chunks_of_a_sweep_are_computed_again(folder, data):
    path = folder / "chunk.safetensors"
    metrics = {name: torch.arange(6.0).reshape(2, 3) for name in METRICS}
    write_chunk(path, metrics)
    path.write_bytes(data.draw(damaged_bytes(path.read_bytes())))
    found = read_chunk(path, 2)
    assert found is None or all(torch.equal(found[name], metrics[name]) for name in METRICS)
    metrics["test_loss"] = data.draw(st.sampled_from(OTHER_TENSORS))
    write_chunk(path, metrics)
    assert read_chunk(path, 2) is None


@examples(4.0)
@given(st.data())
def test_images(folder, data):
    images, labels = np.zeros((4, 2, 3), np.uint8), np.arange(4, dtype=np.uint8)
    files = {
        f"{stem}-{kind}.gz": gzip.compress(
            struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
        )
        for stem in ("train", "t10k")
        for kind, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels))
    }
    rows = b"".join(bytes([label]) + bytes(3072) for label in range(2))
    files |= {"data_batch_1.bin": rows, "test_batch.bin": rows}
    name = data.draw(st.sampled_from(sorted(files)))
    for file, content in files.items():
        (folder / file).write_bytes(data.draw(damaged_bytes(content)) if file == name else content)
    read, bound = (cifar10, 9) if name.endswith("bin") else (mnist, 255)
    found = refused_or(lambda: read(folder), folder)
    if found is not None:
        assert len(found.x_train) == len(found.y_train)
        assert int(found.y_train.max()) <= bound
