"""kernelmem.training.datasets: errors name the array and its shape."""

import warnings
import zipfile

import numpy as np
import pytest
import torch

from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.training.datasets import LabeledData, as_labeled_data, digits, labeled_data, read_arrays, read_npz


def arrays(**changes):
    rng = np.random.default_rng(0)
    whole = {
        "x_train": rng.normal(size=(12, 5)),
        "y_train": np.arange(12) % 3,
        "x_test": rng.normal(size=(7, 5)),
        "y_test": np.arange(7) % 3,
    }
    whole.update(changes)
    return {name: value for name, value in whole.items() if value is not None}


def test_digits_split_is_a_partition():
    data = digits(seed=3)
    rows = torch.cat([data.x_train, data.x_test])
    assert rows.shape == (1797, 64)
    assert len({row.numpy().tobytes() for row in rows}) == len(rows)
    assert not torch.equal(digits(seed=4).x_train, data.x_train)
    assert torch.equal(digits(seed=3).x_train, data.x_train)


def test_reads_what_numpy_saves(tmp_path):
    np.savez(tmp_path / "d.npz", **arrays(flipped=np.arange(12) < 2, y_train=np.arange(12.0) % 3))
    data = read_npz(tmp_path / "d.npz")
    assert data.n_classes == 3
    assert data.y_train.dtype == torch.int64
    assert int(data.flipped.sum()) == 2
    assert data.image_shape is None


def npy(header, data=b""):
    header = header.encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


HEADER = "{{'descr': {!r}, 'fortran_order': False, 'shape': {!r}, }}"


@pytest.mark.parametrize(
    "members",
    [
        [("x", npy(HEADER.format("<f8", (10**12,))))],
        [("x", npy(HEADER.format("<f8", (2**62, 2**62))))],
        [("x", npy(HEADER.format("<f8", (-1,))))],
        [("x", npy(HEADER.format("<f8", ("a",))))],
        [("x", npy(HEADER.format("|O", (1,)), b"cos\nsystem\n(S'id'\ntR."))],
        [("x", npy(HEADER.format("<U0", (2**40,))))],
        [("x", npy(HEADER.format([("a", "<f8")], (1,)), bytes(8)))],
        [("x", npy(HEADER.format("|b1", (3,)), b"\x00\x01\x02"))],
        [("x", npy("(" * 5000))],
        [("x", npy("{" * 5000))],
        [("x", b"\x93NUMPY\x07\x00")],
        [("x", npy(HEADER.format("<f8", (1,)), bytes(8)))] * 2,
    ],
)
def test_arrays_that_claim_what_they_do_not_hold_are_refused(tmp_path, members):
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        for name, content in members:  # zipfile warns of duplicates
            archive.writestr(f"{name}.npy", content)
    with pytest.raises(FileCorruptError, match=r"d\.npz"):
        read_arrays(tmp_path / "d.npz")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_bombs_are_not_unpacked(tmp_path, compression):
    content = npy(HEADER.format("|u1", (10**7,)), bytes(10**7))
    with zipfile.ZipFile(tmp_path / "d.npz", "w", compression) as archive:
        archive.writestr("x.npy", content)
    assert (tmp_path / "d.npz").stat().st_size < 10**4
    with pytest.raises(FileCorruptError):
        read_arrays(tmp_path / "d.npz")
    np.savez_compressed(tmp_path / "zeros.npz", x=np.zeros(10**6))  # as far as NumPy itself compresses
    assert read_arrays(tmp_path / "zeros.npz")["x"].shape == (10**6,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_test": None}, r"without x_test \(it contains x_train \(12, 5\)"),
        ({"y_train": np.arange(11) % 3}, r"y_train of shape \(11,\).*12 labels"),
        ({"x_train": np.full((12, 5), np.nan)}, r"x_train of shape \(12, 5\) with 60 NaN"),
        ({"y_train": np.zeros(12)}, "one class only"),
        ({"y_test": -np.ones(7)}, "outside"),
        ({"y_train": np.arange(12) + 0.5}, "fractions"),
        ({"x_train": np.zeros((0, 5)), "y_train": np.zeros(0)}, r"x_train of shape \(0, 5\)"),
        ({"x_test": np.zeros((7, 4))}, r"x_train of shape \(12, 5\) and x_test of shape \(7, 4\)"),
        ({"y_test": np.zeros((7, 2))}, r"y_test of shape \(7, 2\)"),
        ({"x_train": np.zeros(12)}, r"x_train of shape \(12,\)"),
        ({"flipped": np.zeros(3, bool)}, r"flipped of shape \(3,\)"),
        ({"image_shape": np.array([2, 2])}, r"image_shape \(2, 2\)"),
        ({"image_shape": np.array([-1, -5])}, r"image_shape \(-1, -5\)"),
        ({"image_shape": np.array("1x5")}, "image_shape .*text"),
        ({"y_train": np.array(list("abcabcabcabc"))}, r"y_train of shape \(12,\) and dtype <U1.*numpy.unique\(y_train"),
        ({"x_train": np.zeros((12, 5), complex)}, r"x_train of shape \(12, 5\) and dtype complex128"),
        ({"flipped": np.array(["no"] * 12)}, r"flipped of shape \(12,\) and dtype <U2"),
    ],
)
def test_errors_name_the_array(tmp_path, changes, words):
    np.savez(tmp_path / "d.npz", **arrays(**changes))
    with pytest.raises(InputError, match=words):
        read_npz(tmp_path / "d.npz")


def test_files_that_are_not_arrays(tmp_path):
    np.savez(tmp_path / "o.npz", **arrays(x_train=np.array([{"a": 1}] * 12, dtype=object)))
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "cut.npz", **arrays())
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:300])
    np.savez_compressed(tmp_path / "altered.npz", **arrays())
    altered = bytearray((tmp_path / "altered.npz").read_bytes())
    altered[150:160] = b"\xff" * 10
    (tmp_path / "altered.npz").write_bytes(altered)
    with zipfile.ZipFile(tmp_path / "strange.npz", "w") as archive:
        archive.writestr("x_train", "1 2 3")
    for name in ("o", "single", "text", "cut", "altered", "strange"):
        with pytest.raises(FileCorruptError, match="npz") as refused:
            read_npz(tmp_path / f"{name}.npz")
        assert "unsafely" not in str(refused.value)  # NumPy's hint to run what is in the file
    with pytest.raises(InputError, match="existing"):
        read_npz(tmp_path / "absent.npz")


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (np.float64, torch.float64),
        (">f8", torch.float64),
        (np.float16, torch.float32),
        (np.uint8, torch.float32),
        (np.uint16, torch.float32),
        (bool, torch.float32),
        (np.int64, torch.int64),
    ],
)
def test_number_types(tmp_path, given, read):
    x = np.arange(60).reshape(12, 5) % 2
    np.savez(tmp_path / "d.npz", **arrays(x_train=x.astype(given)))
    data = read_npz(tmp_path / "d.npz")
    assert data.x_train.dtype == read
    assert data.x_train.tolist() == x.tolist()


@pytest.mark.parametrize(
    ("row", "given", "expected"),
    [
        ((64,), (8, 8), (8, 8)),
        ((64,), None, None),
        ((8, 8), None, (8, 8)),
        ((1, 8, 8), None, (8, 8)),
        ((3, 8, 8), None, (8, 8, 3)),
        ((8, 8, 3), None, (8, 8, 3)),
        ((7, 8, 8), None, None),
    ],
)
def test_images_are_recognized(row, given, expected):
    x = np.zeros((4, *row))
    data = labeled_data(x, [0, 1, 0, 1], x, [0, 1, 0, 1], image_shape=given)
    assert data.image_shape == expected


def test_labeled_data_is_saved_printed_and_tabulated(tmp_path):
    data = digits(n_train=30)
    data = data.with_labels(data.y_train, torch.arange(30) < 4)
    read = LabeledData.load(data.save(tmp_path / "digits.safetensors"))
    assert (read.name, read.image_shape) == (data.name, data.image_shape)
    for name in ("x_train", "y_train", "x_test", "y_test", "flipped"):
        assert torch.equal(getattr(read, name), getattr(data, name))
    assert str(data) == (
        "scikit-learn digits: 30 training and 1767 test images (8, 8), float32, 10 classes,"
        " 4 training labels known to be wrong"
    )
    frame = data.to_frame()
    assert frame.groupby("split")["rows"].sum().to_dict() == {"train": 30, "test": 1767}
    assert frame["flipped"].sum() == 4
    assert frame["split"].tolist() == sorted(frame["split"], reverse=True)


def test_pairs_of_rows_and_labels_are_labeled_data():
    a = arrays()
    pairs = ((a["x_train"], a["y_train"]), (a["x_test"], a["y_test"].tolist()))
    data, expected = (
        as_labeled_data(pairs),
        labeled_data(*(a[name] for name in ("x_train", "y_train", "x_test", "y_test"))),
    )
    assert torch.equal(data.x_train, expected.x_train)
    assert torch.equal(data.y_test, expected.y_test)
    assert as_labeled_data(data) is data
    of_arrays = as_labeled_data(LabeledData("mine", *(np.asarray(part) for pair in pairs for part in pair)))
    assert of_arrays.name == "mine"
    assert torch.equal(of_arrays.x_test, data.x_test)
    for junk in (pairs[0], (pairs[0], pairs[1][0]), None, "digits", {"x": 1}, (1, 2), pairs + pairs):
        with pytest.raises(InputError, match="x_train"):
            as_labeled_data(junk)
