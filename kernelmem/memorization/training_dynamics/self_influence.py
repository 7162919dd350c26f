"""Self-influence of training rows in a recorded run: TracIn, last checkpoint, unrolled derivative, ledger."""

import torch
from torch import nn

from kernelmem.core.batches import Batch, Forward, as_rows
from kernelmem.core.checks import ArrayLike, check_choice
from kernelmem.core.options import Progress
from kernelmem.memorization.score import Score
from kernelmem.recording import Run
from kernelmem.training.losses import Loss
from kernelmem.trajectory import LedgerOptions, ledger, self_influence

METHODS = {
    "tracin": ("sum over steps of learning rate times squared gradient norm of the row's loss", "Pruthi et al. 2020"),
    "unrolled": (
        "decrease of the row's final loss per unit of additional weight of the row",
        "Hara, Nitanda, Maehara 2019",
    ),
    "last": ("squared gradient norm of the row's loss at the last weights", "Charpiat et al. 2019"),
    "ledger": (
        "decrease of the row's loss that its own gradients caused in the recorded training",
        "derived here (km.ledger)",
    ),
}


def self_influence_score(
    run: Run,
    model: nn.Module,
    x: Batch,
    y: ArrayLike,
    *,
    method: str = "tracin",
    loss: Loss | None = None,
    forward: Forward | None = None,
    progress: Progress = None,
) -> Score:
    """Return how much each training row lowered its own cross-entropy in a recorded run.

    - ``"tracin"``: Σ_steps η |∇ℓ_i|² over the steps that used the row, every optimizer treated as gradient descent;
    - ``"unrolled"``: minus the derivative of the row's final loss with respect to its weight in the training, exact;
    - ``"last"``: |∇ℓ_i|² at the last weights;
    - ``"ledger"``: minus the row's own contribution to the change of its loss.

    Args:
        run: written by :class:`Recorder` or :func:`fit`.
        model: the module that was trained; never changed.
        x: all n training rows in the order of the recorded indices.
        y: (n,) class indices.
        method: one of the four above.
        loss: the per-example loss, if the run was recorded with a callable.
        forward: maps (model, batch) to outputs (n, C), as in the recording.
        progress: as in ``km.influence``.

    Raises:
        InputError, UnsupportedModelError, VerificationError: as :func:`kernelmem.trajectory.self_influence` and ``km.ledger``.

    Cost: "last": a gradient of every row; "tracin": that for each step; "unrolled": T n Hessian-vector products;
    "ledger": O(n²) numbers.

    Source: Pruthi et al. 2020 (TracIn self-influence); Hara, Nitanda, Maehara 2019 (unrolled).
    """
    check_choice(method, "method", tuple(METHODS))
    rows = as_rows(x, "x")
    if method == "ledger":
        result = ledger(
            run,
            model,
            rows.tree,
            target="loss",
            labels=y,
            loss=loss,
            forward=forward,
            options=LedgerOptions(data=(rows.tree, range(rows.n))),
            progress=progress,
        )
        changes = result.contributions[torch.arange(rows.n), torch.arange(rows.n), 0]
    else:
        options = {"target": "loss", "labels": y, "loss": loss, "forward": forward, "progress": progress}
        changes = self_influence(run, model, rows.tree, method=method, **options)[:, 0]  # pyright: ignore[reportArgumentType]
    meaning, source = METHODS[method]
    return Score(-changes.cpu().to(torch.float64), None, f"self-influence ({method})", "model", 1, meaning, source)
