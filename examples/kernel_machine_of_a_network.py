"""The kernel machine of a network
===============================

Compare a network with kernel machines, and use its path kernel for a classifier and a Gaussian process.

A small network learns digits, and its training is recorded. Kernel machines with frozen or averaged kernels are compared
with it on test digits. Then one pass along the run gives the path kernel of all rows, for a classifier and for a Gaussian
process, whose uncertainty about rotated digits is measured.

Run: python examples/kernel_machine_of_a_network.py
"""

from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import kernelmem as km
from kernelmem.kernel_machines import ComparisonOptions
from kernelmem.training import digits

data = digits(n_train=120, seed=0)
x, y, x_test, y_test = data.x_train, data.y_train, data.x_test[:200], data.y_test[:200]

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
run = km.fit(
    model,
    x,
    y,
    out=Path(mkdtemp()) / "run",
    epochs=15,
    seed=0,
    options=km.FitOptions(
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9), batch_size=30
    ),
)
accuracy = float((model(x_test).argmax(1) == y_test).float().mean())
print(
    f"A network of 64-32-10 units, {len(x)} digits, {len(run)} steps: accuracy {accuracy:.0%} on {len(x_test)} test digits.\n"
)

# Trace kernels: one kernel for all outputs, C² times smaller than the full ones.
frozen = ["sgd_initial", "sgd_final", "sgd_path"]
fitted = ["ridge_initial", "ridge_final", "ridge_path", "null"]
table = km.compare_kernel_machines(
    run,
    model,
    x_test,
    data=(x, y),
    methods=[*frozen, *fitted, "exact_ledger"],
    outputs="trace",
    options=ComparisonOptions(checkpoints=0),
)
print(table)
best = min((table[name] for name in fitted[:3]), key=lambda fit: fit.error)
print(
    "\nErrors are relative to the change by training: predicting no change has error 1. A frozen kernel does not train"
    f"\nlike the network (initial kernel: {table['sgd_initial'].error:.2f}). Of the fits to the network's outputs the best is"
    f"\n'{best.title}': {best.error:.3f}, compared with {table['null'].error:.2f} for permuted outputs. The exact ledger,"
    "\nwith one term per example and step, is the network itself.\n"
)

# One path kernel for all rows; X are then its row numbers. Rotations by 90° keep every pixel.
upright = x_test[:40].reshape(-1, 8, 8)
rotated = torch.stack([torch.rot90(upright, turns, (1, 2)) for turns in range(4)])  # (4, 40, 8, 8)
shuffled = upright.reshape(40, 64)[:, torch.randperm(64, generator=torch.Generator().manual_seed(0))]
rows = torch.cat([x, rotated.reshape(-1, 64), shuffled])
kernel = km.path_kernel(run, model, rows)
train, test = np.arange(len(x)), np.arange(len(x), len(rows))
print(kernel)

classifier = km.KernelMachineClassifier(kernel=kernel, ridge="loo").fit(train, y)
same = (classifier.predict(test[:40]) == model(x_test[:40]).argmax(1).numpy()).mean()
print(
    f"ridge by leave-one-out {classifier.ridge_:.3g}; the classifier agrees with the network on {same:.0%} of 40 digits"
)

# Posterior standard deviation relative to the prior one, √k(x, x).
process = km.KernelMachineGP(kernel=kernel, ridge=classifier.ridge_).fit(train, np.eye(10)[y] - 0.1)
_, std = process.predict(test, return_std=True)
share = (std / np.sqrt(np.diagonal(kernel)[test])).reshape(5, 40)
mean, se = share.mean(1), share.std(1, ddof=1) / np.sqrt(40)
names = ["upright", "rotated by 90°", "rotated by 180°", "rotated by 270°", "pixels shuffled"]
one = 2
print("\nuncertainty of the Gaussian process: posterior standard deviation / √k(x, x)")
print(f"{'test digits':<20}{f'one {int(y_test[one])}':>8}{'mean of 40':>18}")
for name, first, middle, error in zip(names, share[:, one], mean, se, strict=True):
    print(f"{name:<20}{first:>8.3f}{f'{middle:.3f} ± {error:.3f}':>18}")

figure = Figure(figsize=(9.6, 4.2), layout="constrained")
left, right_side = figure.subplots(1, 2)
shown = [*fitted, *frozen][::-1]
left.barh([table[name].title for name in shown], [table[name].error for name in shown], color="#3b6fc4", height=0.55)
left.axvline(1.0, color="#5b6475", linewidth=0.9, dashes=(4, 2.5))
left.set_title("kernel machines: error relative to the network", loc="left", fontsize=9.5)
places = np.arange(5)
right_side.plot(places, share, "o", color="#aab1be", markersize=2.5)
right_side.errorbar(places, mean, yerr=2 * se, fmt="o", color="#d9780f", markersize=6, capsize=3)
right_side.set_title("uncertainty about test digits", loc="left", fontsize=9.5)
right_side.set_xticks(places, ["upright", "90°", "180°", "270°", "shuffled"])
bottom, top = share.min(), share.max()
right_side.set_ylim(bottom - 0.35 * (top - bottom), top + 0.05 * (top - bottom))
right_side.set_xlim(-0.5, 4.5)
for place, image in enumerate([*rotated[:, one], shuffled[one].reshape(8, 8)]):
    axes = right_side.inset_axes((place / 5 + 0.05, 0.02, 0.1, 0.19))
    axes.imshow(-image.numpy(), cmap="gray")
    axes.set_axis_off()
for axes in (left, right_side):
    axes.tick_params(labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)
out = Path("out/kernel_machine.png")
out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(out, dpi=120)
print(f"\nfigure: {out}")
