"""Variance of training
====================

Why networks trained on the same task differ, and how much of the labels each of them uses.

1. Variance components: networks are trained from several initializations, on several training sets, with several draws of
   label noise. The factorial design separates the variance of their outputs into these sources, below, at and above the
   interpolation threshold.
2. Effective parameters: the linear smoother of a recorded run. f = offset + S y holds exactly for the trained network, and
   S says how strongly its predictions depend on the training labels, for training and for test digits.

Run: python examples/variance_of_training.py (about 20 s on two cores)
"""

from pathlib import Path
from tempfile import mkdtemp

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import one_hot

import kernelmem as km
from kernelmem.double_descent.variance import factorial_design, run_smoother
from kernelmem.training import EnsembleOptions, Recipe, digits, train_mlps

data = digits(n_train=1000, seed=0)
x, y = data.x_train, data.y_train
x_test, y_test = data.x_test[:300], data.y_test[:300]

# 1. Where does the variance come from?
design = factorial_design(initializations=3, data=3, noise=3, seed=0)
print(design)


def draw(data_seed, noise_seed):
    """One training set: 100 digits, a fifth of them with another label."""
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(data_seed))[:100]
    return rows, km.corrupt_labels(y[rows], 0.2, seed=noise_seed).y


recipe = Recipe(lr=0.01, steps=300, loss="mse")
options = EnsembleOptions(keep_outputs=True)
targets = one_hot(y_test, 10).double() - 0.1  # what the loss "mse" fits
columns = ("initialization", "data", "data x noise", "all three")
print(f"\nsquared test error\n{'width':>6}{'risk':>8}{'bias':>8}" + "".join(f"{name:>16}" for name in columns))
widths, bars = (4, 12, 100), []
for width in widths:
    ensemble = train_mlps(design.members(width, draw), x, test=(x_test, y_test), recipe=recipe, options=options)
    components = design.components(ensemble.metrics[-1].logits, targets)
    shown = [
        components[name] for name in ("initialization", "data", ("data", "noise"), ("initialization", "data", "noise"))
    ]
    bars.append([components.bias, *(max(component.value, 0.0) for component in shown)])
    print(f"{width:>6}{components.risk:>8.3f}{components.bias:>8.3f}" + "".join(f"{c.value:>16.3f}" for c in shown))
    print(f"       risk of the mean of 10 initializations: {components.averaged(initialization=10):.3f}")
print("\n" + str(components))

# 2. How much of the labels does a network use? One output, "the digit is even", a tenth of the labels wrong.
n, m = 40, 60
labels = km.corrupt_labels(y[:n] % 2, 0.1, seed=0).y
even, even_test = 1.0 - 2.0 * labels.double()[:, None], 1.0 - 2.0 * (y_test[:m] % 2)
rows, test_rows = x[:n].double(), x_test[:m].double()
print(f"\n{'steps':>6}{'train loss':>12}{'test error':>12}{'p_eff train':>13}{'p_eff test':>12}{'residual':>10}")
for steps in (5, 20, 60):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    folder = Path(mkdtemp()) / "run"
    with km.Recorder(model, optimizer, folder, loss="mse") as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = 0.5 * (model(rows) - even).square().mean()
            loss.backward()
            recorder.step(torch.arange(n), rows, even)
    smoother = run_smoother(km.Run.open(folder), model, test_rows, data=(rows, even), tolerance=1e-6)
    wrong = float((model(test_rows)[:, 0].sign() != even_test).double().mean())
    print(
        f"{steps:>6}{loss.item():>12.3f}{wrong:>12.1%}{smoother.p_eff_train.value:>13.1f}{smoother.p_eff.value:>12.1f}"
        f"{float(smoother.residual.abs().max()):>10.0e}"
    )
print(f"\n{smoother}")

figure = Figure(figsize=(7.2, 3.4), layout="constrained")
axes = figure.subplots()
bottom = [0.0] * len(widths)
colors = ("#aab1be", "#3b6fc4", "#d9780f", "#5a9a4a", "#8a5ab5")
for at, (name, color) in enumerate(zip(("bias", *columns), colors, strict=True)):
    heights = [bar[at] for bar in bars]
    axes.bar([f"width {width}" for width in widths], heights, bottom=bottom, width=0.5, color=color, label=name)
    bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
axes.set_ylabel("squared test error")
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
axes.spines[["top", "right"]].set_visible(False)
out = Path("out/variance_of_training.png")
out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(out, dpi=120)
print(f"\nfigure: {out}")
