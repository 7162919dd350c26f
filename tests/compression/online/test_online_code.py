"""Online codes of labels: lengths, random labels, invariances, streams that decode, files."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kernelmem as km
from kernelmem.compression import KernelPredictor, OnlineCode, OnlineOptions, lengths_over_orders, online_code
from kernelmem.compression.coder import frequencies, margin
from kernelmem.compression.online.stream import row_order
from kernelmem.statistics import clopper_pearson
from tests.damaged_files import damaged_bytes
from tests.profiles import examples

FEW = OnlineOptions(ridges=(0.01, 1.0), temperatures=(0.2, 1.0), floors=(2.0**-10, 0.25))


def draw(n, C, seed=0):
    """Return a kernel (n, n) and labels (n,) that follow from the rows."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    y = (x @ torch.randn(3, C, generator=generator, dtype=torch.float64)).argmax(1)
    return torch.exp(-torch.cdist(x, x).square() / 4), y


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**31), st.booleans())
@examples(2)
def test_labels_decode_and_the_stream_is_a_little_longer_than_the_ideal(n, C, seed, random):
    kernel, y = draw(n, C, seed)
    y = torch.randint(C, (n,), generator=torch.Generator().manual_seed(seed)) if random else y
    code = online_code(kernel, y, n_classes=C, options=FEW)
    assert torch.equal(OnlineCode.decode(code.encode(), kernel), y)
    assert len(code.stream) * 8 == code.bits
    # a byte of header and up to 32 bits of the coder; rounding of frequencies gives 2C of 2**16 away
    assert 0 <= code.bits - code.ideal <= 40 + n * 2 * C / 2**16 / np.log(2) * 1.01
    assert code.ideal <= code.uniform + 1 + 1e-9
    assert float(code.per_example.min()) >= 0


def test_lengths_over_orders_are_those_of_each_order():
    kernel, y = draw(25, 3)
    lengths = lengths_over_orders(kernel, y, n_orders=3, options=FEW)
    assert lengths.tolist() == [online_code(kernel, y, order_seed=seed, options=FEW).ideal for seed in range(3)]
    assert len(set(lengths.tolist())) == 3


@pytest.mark.parametrize("seed", [0, 1, 127, 128, 2**63 - 1])
def test_the_seed_of_the_order_is_paid(seed):
    kernel, y = draw(30, 3)
    code = online_code(kernel, y, order_seed=seed, options=FEW)
    header = 1 + (-(-seed.bit_length() // 7))
    assert code.bits - code.ideal >= 8 * header + 24
    assert code.bits - code.ideal <= 8 * header + 34
    assert torch.equal(OnlineCode.decode(code.encode(), kernel), y)


def test_bits_per_example_are_in_the_order_of_the_caller():
    kernel, y = draw(40, 4)
    code = online_code(kernel, y, order_seed=3)
    order = code.position.argsort()
    assert float(code.per_example[order[0]]) == pytest.approx(2.0)  # nothing is known of the first label
    q = KernelPredictor(lambda x: kernel[order][:, order], 4)(None, y[order])
    np.testing.assert_allclose(code.per_example[order], -np.log2(q[np.arange(40), y[order]]), rtol=1e-12)
    assert code.wrong[order].tolist() == (q.argmax(1) != y[order].numpy()).tolist()
    assert code.mistakes == int(code.wrong.sum())
    assert code.ideal == pytest.approx(float(code.per_example.sum()))


def saved_bits(draws, n=20, C=3):
    """Bits that the code of random labels is shorter than n log2 C, for many draws."""
    kernel, _ = draw(n, C)
    predictor, generator = KernelPredictor(lambda x: x, C, FEW), np.random.default_rng(0)
    labels = generator.integers(C, size=(draws, n))
    rows = np.arange(n)
    return np.array([n * np.log2(C) + np.log2(predictor(kernel, y)[rows, y]).sum() for y in labels])


def check_saved_bits(saved):
    assert saved.min() >= -1 - 1e-9  # at most one bit more than uniform
    for d in (0, 1, 2, 4):
        assert clopper_pearson(int((saved >= d).sum()), len(saved), level=0.999).low <= 2.0**-d
    assert np.mean(2.0**saved) <= 1 + 5 * np.std(2.0**saved) / np.sqrt(len(saved))  # E 2^saved <= 1


def test_random_labels_are_not_compressed():
    check_saved_bits(saved_bits(100))


@pytest.mark.soak
def test_random_labels_are_not_compressed_in_a_thousand_draws():
    check_saved_bits(saved_bits(1000))


@given(st.integers(0, 2**31), st.permutations(range(4)))
@examples(0.5)
def test_names_of_classes_do_not_matter(seed, names):
    kernel, y = draw(30, 4, seed)
    renamed = torch.tensor(names)[y]
    bits = online_code(kernel, y, n_classes=4, options=FEW).per_example
    others = online_code(kernel, renamed, n_classes=4, options=FEW).per_example
    np.testing.assert_allclose(others, bits, rtol=0, atol=1e-9)


@given(st.integers(0, 2**31), st.sampled_from([2.0**-300, 2.0**20, 3.7, 1e-12]))
@examples(0.5)
def test_the_scale_of_a_kernel_does_not_matter(seed, factor):
    kernel, y = draw(30, 3, seed)
    bits = online_code(kernel, y, options=FEW).per_example
    scaled = online_code(factor * kernel, y, options=FEW).per_example
    exact = np.frexp(factor)[0] == 0.5  # powers of two
    np.testing.assert_allclose(scaled, bits, rtol=0, atol=0 if exact else 1e-9)


def test_a_float32_kernel_is_computed_in_float64():
    kernel, y = draw(30, 3)
    single = online_code(kernel.float(), y)
    assert torch.equal(single.per_example, online_code(kernel.float().double(), y).per_example)
    assert torch.equal(OnlineCode.decode(single.encode(), kernel.float().numpy()), y)


def test_several_kernels_are_mixed():
    kernel, y = draw(60, 3)
    useless = torch.eye(60, dtype=torch.float64)
    alone, both = online_code(kernel, y), online_code({"good": kernel, "useless": useless}, y)
    # the experts share the prior weight that is not of the uniform expert
    shares = [len(code.expert_names) - 1 for code in (alone, both)]
    assert both.ideal <= alone.ideal + np.log2(shares[1] / shares[0]) + 1e-9
    assert next(iter(both.experts)).startswith("kernel good")
    assert sum(both.experts.values()) == pytest.approx(1)
    listed = online_code([kernel, useless], y)
    assert torch.equal(listed.per_example, both.per_example)
    assert torch.equal(OnlineCode.decode(both.encode(), [kernel, useless]), y)
    assert torch.equal(OnlineCode.decode(listed.encode(), {"a": kernel, "b": useless}), y)


def test_label_noise_lengthens_the_code_by_its_information():
    kernel, y = draw(200, 4)
    noisy = km.corrupt_labels(y, 0.3, seed=0).y
    clean, with_noise = online_code(kernel, y), online_code(kernel, noisy)
    information = 200 * (0.8813 + 0.3 * np.log2(3))  # n (h(.3) + .3 log2(C − 1))
    assert 0.7 * information < with_noise.ideal - clean.ideal < 1.3 * information


@pytest.mark.parametrize("n_classes", [None, 1])
def test_one_class_costs_nothing(n_classes):
    kernel, _ = draw(5, 2)
    code = online_code(kernel, torch.zeros(5), n_classes=n_classes)
    assert (code.bits, code.uniform, code.mistakes) == (8, 0.0, 0)
    assert code.ideal == pytest.approx(0, abs=1e-12)
    assert torch.equal(OnlineCode.decode(code.encode(), kernel), torch.zeros(5, dtype=torch.int64))
    assert "uniform" not in str(code).splitlines()[0]
    code.plot()


def test_rare_and_missing_classes():
    kernel, y = draw(30, 2)
    assert online_code(kernel, 3 * y, n_classes=6).uniform == pytest.approx(30 * np.log2(6))
    one = torch.zeros(30, dtype=torch.int64)
    assert online_code(kernel, one, n_classes=3).ideal < 12  # the marginal expert learns that there is one class


@pytest.mark.parametrize("factor", [1 - 2e-15, 1 + 2e-15])
def test_labels_decode_from_a_kernel_that_was_rounded_otherwise(factor):
    kernel, y = draw(80, 5)
    code = online_code(kernel, y)
    noise = 1 + (factor - 1) * torch.rand(80, 80, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(OnlineCode.decode(code.encode(), kernel * (noise + noise.T) / 2), y)
    assert code.tolerance > 1e-10


def test_what_is_not_the_code_of_this_kernel_is_refused():
    kernel, y = draw(30, 3)
    data = online_code(kernel, y, options=FEW).encode()
    with pytest.raises(km.FileCorruptError, match=r"does not decode with these predictions|checksum"):
        OnlineCode.decode(data, kernel + 0.1 * torch.eye(30))
    with pytest.raises(km.FileCorruptError, match="30 labels"):
        OnlineCode.decode(data, kernel[:20, :20])
    with pytest.raises(km.InputError, match="bytes"):
        OnlineCode.decode("text", kernel)  # pyright: ignore[reportArgumentType]


ENCODED = online_code(*draw(30, 3), options=FEW).encode()


@given(damaged_bytes(ENCODED))
@examples(3)
def test_damaged_bytes_are_refused(data):
    if data == ENCODED:
        return
    with pytest.raises(km.FileCorruptError):
        OnlineCode.decode(data, draw(30, 3)[0])


def test_inputs_are_checked():
    kernel, y = draw(10, 2)
    for arguments, error, message in (
        ({"source": kernel[:5]}, km.InputError, "square"),
        ({"source": [kernel, kernel[:5, :5]]}, km.InputError, "of the same rows"),
        ({"source": {}}, km.InputError, "kernels"),
        ({"source": torch.ones(10, 10).triu()}, km.NumericalError, "symmetric"),
        ({"source": torch.full((10, 10), torch.nan)}, km.InputError, "NaN"),
        ({"source": torch.zeros(10, 10)}, km.InputError, "diagonal"),
        ({"y": y[:5]}, km.InputError, "10 labels"),
        ({"y": y + 0.5}, km.InputError, "whole numbers"),
        ({"y": 70_000 * y}, km.InputError, "number the classes"),
        ({"n_classes": 1}, km.InputError, "n_classes|outside|0..0"),
        ({"order_seed": -1}, km.InputError, "order_seed"),
        ({"memory": 1000}, km.InputError, "memory"),
        ({"source": torch.nn.Linear(2, 2)}, km.InputError, "function of"),
    ):
        with pytest.raises(error, match=message):
            online_code(**({"source": kernel, "y": y} | arguments))


def test_a_code_is_printed_tabulated_drawn_saved_and_read(tmp_path):
    kernel, y = draw(50, 3)
    code = online_code(kernel, y, order_seed=1, options=FEW)
    assert "online code of 50 labels, 3 classes" in str(code)
    assert "no bit was saved" not in str(code)
    assert "no bit was saved" in str(
        online_code(kernel, torch.randint(3, (50,), generator=torch.Generator().manual_seed(0)))
    )
    frame = code.to_frame()
    assert frame["bits"].sum() == pytest.approx(code.ideal)
    assert sorted(frame["position"]) == list(range(50))
    assert len(code.plot().axes) == 2
    read = OnlineCode.load(code.save(tmp_path / "code"))
    assert read.encode() == code.encode()
    assert read.experts == code.experts
    assert read.options == code.options


@pytest.mark.soak
@pytest.mark.parametrize("threads", [1, 2])
def test_labels_decode_in_another_process_with_another_number_of_threads(tmp_path, threads):
    data = km.training.digits(n_train=700, seed=0)
    x, y = data.x_train.flatten(1).double(), data.y_train
    code = km.online_code(km.infinite_ntk(x, depth=2), y)
    (tmp_path / "code").write_bytes(code.encode())
    np.save(tmp_path / "x.npy", x.numpy())
    program = f"""
import numpy, pathlib, torch, kernelmem as km
torch.set_num_threads({threads})
kernel = km.infinite_ntk(torch.from_numpy(numpy.load({str(tmp_path / "x.npy")!r})), depth=2)
data = pathlib.Path({str(tmp_path / "code")!r}).read_bytes()
numpy.save({str(tmp_path / "y.npy")!r}, km.OnlineCode.decode(data, kernel).numpy())
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert np.array_equal(np.load(tmp_path / "y.npy"), y)


def test_the_tolerance_is_the_change_of_probabilities_that_no_frequency_notices():
    kernel, y = draw(40, 4)
    code = online_code(kernel, y)
    order, shift = row_order(40, 0), int(code.stream[0]) / 128
    q = KernelPredictor(lambda x: kernel[order][:, order], 4)(None, y[order])
    assert code.tolerance == pytest.approx(margin(q, shift) / 2**16, rel=1e-3)
    moved = q + 0.99 * code.tolerance * np.random.default_rng(0).choice([-1, 1], q.shape)
    assert np.array_equal(frequencies(moved, shift), frequencies(q, shift))
