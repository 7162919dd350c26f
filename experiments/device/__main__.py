"""Compare public functions on an accelerator with the same functions on the CPU: largest relative differences."""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import kernelmem as km
from kernelmem.training import EnsembleOptions, Member, Recipe, digits, train_mlps

OUTPUTS = ("trace", "full", "diagonal", "pseudo")


def network() -> nn.Module:
    """A small convolutional network in float64."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.LayerNorm(288), nn.Linear(288, 10)
    return nn.Sequential(*layers).double().eval()


def difference(compute: Callable[[str], Tensor], device: str) -> float:
    """max |a - b| / max |a| with a on the CPU and b on the device."""
    on_cpu, on_device = compute("cpu"), compute(device).cpu()
    return float((on_device - on_cpu).abs().max() / on_cpu.abs().max())


def differences(device: str) -> dict[str, float]:
    """The largest relative difference of every function."""
    model = network()
    x = torch.randn(64, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    v = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    results = {}
    for dtype in (torch.float64, torch.float32):
        for outputs in OUTPUTS:
            name = f"ntk {outputs} {str(dtype).removeprefix('torch.')}"
            results[name] = difference(lambda at: km.ntk(model.to(at), x, outputs=outputs, dtype=dtype), device)  # noqa: B023
    results["tangent_features"] = difference(lambda at: km.tangent_features(model.to(at), x, 128, seed=0), device)
    results["ntk_operator"] = difference(lambda at: km.ntk_operator(model.to(at), x) @ v.to(at), device)
    results["train_mlps float64"] = difference(test_loss, device)
    results["audit loo_margin"] = difference(loo_margin, device)
    results["account left-out bits"] = difference(left_out_bits, device)
    results["shadow_ensemble logits"] = difference(shadow_logits, device)
    for dtype in (torch.float64, torch.float32):
        name = f"token_losses {str(dtype).removeprefix('torch.')}"
        results[name] = difference(lambda at: token_bits(at, dtype), device)  # noqa: B023
    return results


def test_loss(device: str) -> Tensor:
    """Test loss of three networks after 50 steps."""
    data = digits(n_train=300)
    members = [Member(width, torch.arange(300), data.y_train, 1, 1) for width in (4, 16, 64)]
    recipe = Recipe(lr=0.01, batch_size=50, steps=50)
    options = EnsembleOptions(dtype=torch.float64, device=device, n_classes=10)
    test = (data.x_test, data.y_test)
    ensemble = train_mlps(members, data.x_train, test=test, recipe=recipe, options=options)
    return torch.as_tensor(ensemble.metrics[-1].test_loss)


def loo_margin(device: str) -> Tensor:
    """Leave-one-out margins of an audit of an untrained network."""
    data = digits(n_train=300)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(device)
    audit = km.audit(model, (data.x_train.flatten(1), data.y_train), (data.x_test.flatten(1), data.y_test))
    return torch.as_tensor(audit.to_frame()["loo_margin"].to_numpy().copy())


def left_out_bits(device: str) -> Tensor:
    """Bits of each label by the other rows, under the tangent kernel of a re-initialized network."""
    data = digits(n_train=300)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).double().to(device)
    return km.account(model, (data.x_train.flatten(1), data.y_train)).left_out_rows


def shadow_logits(device: str) -> Tensor:
    """Logits of eight models of random halves of the rows, in float64."""
    data = digits(n_train=200)
    training = km.EnsembleTraining(Recipe(lr=0.01, batch_size=50, steps=50), width=16)
    options = km.ShadowOptions(n_models=8, device=device)
    rows = (data.x_train.flatten(1).double(), data.y_train)
    return torch.as_tensor(km.shadow_ensemble(rows, training, options=options).logits)


class RecurrentModel(nn.Module):
    """Language model with one LSTM layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.output = nn.Embedding(40, 16), nn.Linear(64, 40)
        self.recurrent = nn.LSTM(16, 64, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        return self.output(self.recurrent(self.embedding(ids))[0])


def token_bits(device: str, dtype: torch.dtype) -> Tensor:
    """Bits of all tokens of documents of 2 to 200 tokens."""
    generator = torch.Generator().manual_seed(3)
    documents = [torch.randint(40, (n,), generator=generator) for n in (2, 17, 64, 200)]
    model = RecurrentModel().to(device)
    return torch.cat(list(km.text.token_losses(km.text.causal_lm(model), documents, dtype=dtype).bits))


def seconds(device: str) -> float:
    """Time of the trace kernel of 2,000 rows, 784-512-512-10, float32, the second of two calls."""
    torch.manual_seed(0)
    layers = nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    model, x = nn.Sequential(*layers).eval().to(device), torch.randn(2000, 784)
    for _ in range(2):
        start = time.perf_counter()
        km.ntk(model, x, verify=False).sum().item()  # .item() waits for the device
        elapsed = time.perf_counter() - start
    return elapsed


def main() -> None:
    """Print the differences and write them to ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("out/device_equality/results.json"))
    arguments = parser.parse_args()
    name = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else platform.processor()
    results = {
        "device": name,
        "torch": torch.__version__,
        "largest relative difference": differences(arguments.device),
        "seconds ntk 2000 rows": {at: round(seconds(at), 4) for at in ("cpu", arguments.device)},
    }
    text = json.dumps(results, indent=2)
    print(text)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
