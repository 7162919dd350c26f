"""kernelmem.training.losses: each name is torch's loss, one number per example."""

import pytest
import torch
import torch.nn.functional as F

from kernelmem.core.errors import InputError, UnsupportedModelError
from kernelmem.training.losses import batch_loss, class_outputs, loss_name, per_example_loss


def outputs_and_labels(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 3, dtype=dtype, generator=generator), torch.randint(3, (5,), generator=generator)


def test_cross_entropy_equals_torch():
    f, y = outputs_and_labels()
    torch.testing.assert_close(per_example_loss("cross_entropy")(f, y), F.cross_entropy(f, y, reduction="none"))
    soft = torch.softmax(f.flip(1), 1)
    torch.testing.assert_close(per_example_loss("cross_entropy")(f, soft), F.cross_entropy(f, soft, reduction="none"))
    assert torch.equal(per_example_loss("cross_entropy")(f, y.int()), per_example_loss("cross_entropy")(f, y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_logit_gives_the_binary_cross_entropy(dtype):
    f, y = outputs_and_labels(dtype)
    logit, labels = 30 * f[:, :1], y % 2
    losses = per_example_loss("cross_entropy")(logit, labels)
    expected = F.binary_cross_entropy_with_logits(logit[:, 0], labels.to(dtype), reduction="none")
    eps = torch.finfo(dtype).eps  # log-softmax subtracts numbers of the size of the logit
    torch.testing.assert_close(losses, expected, rtol=8 * eps, atol=4 * eps * float(logit.abs().max()))
    assert torch.equal(class_outputs(logit[:, 0]), class_outputs(logit))
    assert torch.equal(class_outputs(logit).argmax(1) == 1, logit[:, 0] > 0)
    assert class_outputs(f) is f
    with pytest.raises(InputError, match=r"0\.\.1"):
        per_example_loss("cross_entropy")(logit, y + 1)


def test_mse_is_half_the_squared_distance_and_mse_mean_equals_torch():
    f, y = outputs_and_labels()
    one_hot = F.one_hot(y, 3).double()
    by_hand = torch.stack([0.5 * sum((f[i, c] - one_hot[i, c]) ** 2 for c in range(3)) for i in range(5)])
    torch.testing.assert_close(per_example_loss("mse")(f, y), by_hand)
    torch.testing.assert_close(per_example_loss("mse")(f, one_hot), by_hand)
    torch.testing.assert_close(per_example_loss("mse_mean")(f, y), by_hand * 2 / 3)
    torch.testing.assert_close(batch_loss("mse_mean", f, y, None, reduction="mean"), F.mse_loss(f, one_hot))


def test_one_output_accepts_real_targets_with_or_without_its_axis():
    f, y = torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 4.0])
    assert per_example_loss("mse")(f, y).tolist() == [0.5, 2.0]
    assert per_example_loss("mse")(f, y[:, None]).tolist() == [0.5, 2.0]
    assert per_example_loss("mse")(f, y.long()).tolist() == [0.5, 2.0]


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "mse_mean", lambda f, y: f.sum(1) * y])
def test_weights_multiply_and_the_mean_is_over_rows(loss):
    f, y = outputs_and_labels()
    w = torch.tensor([0.0, 1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    losses = per_example_loss(loss)(f, y)
    total = sum(float(w[i] * losses[i]) for i in range(5))
    assert float(batch_loss(loss, f, y, w, reduction="sum")) == pytest.approx(total, rel=1e-14)
    assert float(batch_loss(loss, f, y, w, reduction="mean")) == pytest.approx(total / 5, rel=1e-14)
    assert float(batch_loss(loss, f, y, None, reduction="mean")) == pytest.approx(float(losses.mean()), rel=1e-14)


def test_names():
    assert loss_name("mse") == "mse"
    assert loss_name(F.cross_entropy) == "callable:torch.nn.functional.cross_entropy"


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "kind", "words"),
    [
        ("hinge", (5, 3), (5,), InputError, "loss='hinge'.*one of cross_entropy, mse"),
        ("mse", (5,), (5,), UnsupportedModelError, r"shape \(5,\).*\(5, C\).*\[:, None\]"),
        ("cross_entropy", (5, 3, 2), (5,), UnsupportedModelError, r"shape \(5, 3, 2\)"),
        ("cross_entropy", (5, 3), (4,), InputError, r"shape \(4,\).*outputs \(5, 3\)"),
        ("cross_entropy", (5, 3), (5, 3), InputError, "integer labels"),
        ("mse", (5, 3), (4,), InputError, r"labels \(5,\)"),
        ("mse", (5, 2), (5,), InputError, r"in 0\.\.1"),
        (lambda f, y: f.mean(), (5, 3), (5,), InputError, r'returns \(\) for 5.*reduction="none"'),
        (lambda f, y: 3.0, (5, 3), (5,), InputError, "returns float"),
    ],
)
def test_wrong_outputs_and_targets_are_refused(loss, outputs, targets, kind, words):
    labels = torch.full(targets, 2)
    with pytest.raises(kind, match=words):
        per_example_loss(loss)(torch.zeros(outputs), labels)
