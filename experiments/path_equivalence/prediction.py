"""One prediction of a recorded run, example by example."""

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

import kernelmem as km
from experiments.path_equivalence.training import problem
from kernelmem.plotting import ledger_figure
from kernelmem.trajectory import exact_kernel_machine

__all__ = ["draw"]

FLIPS, BATCH, EPOCHS, RATE = 0.15, 16, 12, 3e-3


def draw(directory: str, seed: int = 0) -> tuple[Figure, dict]:
    """Train a tanh network with AdamW on digits, some with wrong labels, and explain the test row that it is least sure of."""
    own = problem(seed, nn.Tanh)
    noisy = km.corrupt_labels(own.y, FLIPS, seed=seed)
    model, labels = own.network.float(), noisy.y
    x, x_test = own.x.float(), own.x_test.float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    generator = torch.Generator().manual_seed(seed)
    with km.Recorder(model, optimizer, directory, loss="cross_entropy") as recorder:
        for _ in range(EPOCHS):
            for index in torch.randperm(len(x), generator=generator).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(x[index]), labels[index]).backward()
                recorder.step(index, x[index], labels[index])
    run = km.Run.open(directory)
    with torch.no_grad():
        outputs = model(x_test)
    best = outputs.topk(2, dim=1)
    row = int((best.values[:, 0] - best.values[:, 1]).argmin())
    chosen = int(best.indices[row, 0])
    ledger = km.ledger(run, model, x_test[row : row + 1], options=km.LedgerOptions(data=(x, labels)))
    machine = exact_kernel_machine(run, model, x_test[row : row + 1], target=("logit", chosen))
    atoms = torch.einsum("makc,ac->mak", machine.kernel, machine.coefficients)[0, :, 0]
    steps = torch.zeros(len(run), len(x), dtype=torch.float64)
    steps = steps.index_put((machine.steps, machine.examples), atoms, accumulate=True).cumsum(0)
    names = [f"{own.y[i]} called {labels[i]}" if noisy.flipped[i] else f"{labels[i]}" for i in range(len(x))]
    figure = ledger_figure(
        ledger,
        0,
        output=chosen,
        image=x_test[row].view(8, 8),
        images=x.view(-1, 8, 8),
        labels=names,
        steps=steps,
        n=7,
    )
    contributions = ledger.contributions[0, :, chosen]
    gap = float((steps[-1] - contributions).abs().max())
    return figure, {
        "test_row": row,
        "digit": int(own.y_test[row]),
        "output": chosen,
        "margin": float(best.values[row, 0] - best.values[row, 1]),
        "change": float((ledger.final - ledger.initial)[0, chosen]),
        "mass": float(contributions.abs().sum()),
        "cancellation": float(ledger.cancellation[0, chosen]),
        "rounding": float(ledger.rounding[0, chosen]),
        "decay": float(ledger.decay[0, chosen]),
        "residual": ledger.largest_residual,
        "mass_of_flipped": float(contributions[noisy.flipped].abs().sum() / contributions.abs().sum()),
        "share_flipped": float(noisy.flipped.double().mean()),
        "ledger_and_exact_kernel_machine": gap,
        "test_accuracy": float(np.mean((outputs.argmax(1) == own.y_test).numpy())),
    }
