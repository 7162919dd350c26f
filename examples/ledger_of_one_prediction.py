"""The ledger of one prediction
============================

The ledger of one prediction: contributions of training examples with correct and with wrong labels.

A network learns digits, a tenth of them with flipped labels, and its training is recorded. The ledger of one test digit
gives the contribution of every example to its score in that training; influence, what would change if one weighed more.

Run: python examples/ledger_of_one_prediction.py
"""

from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from torch import nn

import kernelmem as km
from kernelmem.training import digits

data = digits(n_train=200, seed=0)
noisy = km.corrupt_labels(data.y_train, 0.1, seed=0)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10))
run = km.fit(
    model,
    data.x_train,
    noisy.y,
    out=Path(mkdtemp()) / "run",
    epochs=12,
    seed=0,
    options=km.FitOptions(optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2), batch_size=32),
)

# The test digit whose margin (the score of its label minus the largest other one) is smallest.
rows = data.x_test[:100].to(torch.float32)
scores = model(rows).detach()
true = data.y_test[:100]
others = scores.scatter(1, true[:, None], float("-inf")).max(1).values
row = int((scores.gather(1, true[:, None])[:, 0] - others).argmin())
x, y = rows[row : row + 1], true[row : row + 1]

# By group: clean and flipped. The terms add up to the change of the margin, up to the residual.
groups = np.where(noisy.flipped.numpy(), "flipped", "clean")
print(f"test digit {row}, a {int(y)}: the margin of its label\n")
print(km.ledger(run, model, x, labels=y, target="margin", by=groups))

# By example, with the history for the curves.
ledger = km.ledger(run, model, x, labels=y, target="margin", options=km.LedgerOptions(history=True))
influence = km.influence(run, model, x, labels=y, target="margin")
print("\nlargest contributions                   ledger  influence")
for example, contribution in ledger.top(0, 6):
    flip = f", flipped from {int(data.y_train[example])}" if noisy.flipped[example] else ""
    name = f"no. {example}, labeled {int(noisy.y[example])}{flip}"
    print(f"{name:<36}{contribution:>+10.3f} {float(influence.influence[0, example, 0]):>+10.3f}")
print(
    "\nThe ledger gives the contribution of an example to the recorded training; influence, what would"
    "\nchange if it weighed more."
)

figure = ledger.plot(
    0,
    image=x[0].reshape(8, 8),
    images=data.x_train.reshape(-1, 8, 8),
    labels=[
        f"{int(label)}{' (flipped)' if wrong else ''}" for label, wrong in zip(noisy.y, noisy.flipped, strict=True)
    ],
)
out = Path("out/ledger.png")
out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(out, dpi=120)
saved = ledger.save(run.path / "ledger.safetensors")
print(f"\nfigure: {out}; verify run and ledger from the files: kernelmem ledger verify {saved.parent}")
