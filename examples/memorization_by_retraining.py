"""Memorization by retraining
==========================

Memorization of digits with wrong labels, measured by retraining, with its error bars and controls.

Forty-eight networks are trained on random halves of the rows. A row is memorized as far as the networks that trained on it
predict its label and the others do not. The same networks tell what an attacker could infer, and which cheap score of one
training run ranks the rows in the same way.

Run: python examples/memorization_by_retraining.py
"""

from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import nn

import kernelmem as km
from kernelmem.training import Recipe, digits

data = digits(n_train=200, seed=0)
noisy = km.corrupt_labels(data.y_train, 0.1, seed=0)

# Your own training works too: a function train(indices, seed) that returns the trained model, instead of EnsembleTraining.
training = km.EnsembleTraining(Recipe(steps=200, lr=0.02), width=64)
options = km.ShadowOptions(n_models=48, share=0.5, sampling="balanced")
shadows = km.shadow_ensemble(
    (data.x_train, noisy.y), training, test=(data.x_test[:300], data.y_test[:300]), options=options
)
print(shadows, end="\n\n")

# Memorization of every row with its interval; the control are subsets permuted among the networks.
retrained = km.feldman_zhang(shadows)
print(retrained)
for row, value in retrained.memorization.top(5):
    flipped = ", a flipped label" if noisy.flipped[row] else ""
    print(f"    row {row:3}: {value:.2f} ({retrained.low[row]:.2f} to {retrained.high[row]:.2f}){flipped}")
print(f"    AUROC for the flips: {km.detect(retrained.memorization.values, noisy.flipped, seed=0).auroc:.3f}\n")

# What an attacker infers; the control are permuted memberships.
print(km.membership(shadows, attack="lira"), end="\n\n")

# Cheap scores: one recorded run, and the leave-one-out predictions of a kernel machine.
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
kernel = km.ntk(model, data.x_train, outputs="trace")
fit = km.FitOptions(optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.02), batch_size=50)
run = km.fit(model, data.x_train, noisy.y, out=Path(mkdtemp()) / "run", epochs=20, seed=0, options=fit)
history = km.training_history(run, model, data.x_train, noisy.y)
loo = km.leave_one_out(kernel, noisy.y, km.choose_ridge(kernel, noisy.y).ridge)
scores = km.memorization_scores(history, loo, reference=retrained)
print(scores)

out = Path("out/memorization_by_retraining.png")
out.parent.mkdir(parents=True, exist_ok=True)
retrained.plot().savefig(out, dpi=120)
print(f"\nfigure: {out}")
