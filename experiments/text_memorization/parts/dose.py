"""Dose-response: recall of canaries by number of copies, size of the model and epochs."""

from dataclasses import dataclass

from experiments.text_memorization.parts.recall import recall
from kernelmem import text

__all__ = ["Doses", "doses"]


@dataclass(frozen=True)
class Doses:
    """Sizes and epochs; the documents, canaries and rows of one seed are the same in all cells."""

    cells: tuple[tuple[int, int], ...] = ((100, 12), (200, 6), (200, 12))
    """Pairs of (size of the state, epochs)."""
    n_documents: int = 200
    n_canaries: int = 80


def doses(setting: Doses, seed: int) -> list[dict]:
    """Return a record per cell and number of copies."""
    records = []
    for hidden, epochs in setting.cells:
        shown = text.demonstration(
            seed=seed,
            n_documents=setting.n_documents,
            n_canaries=setting.n_canaries,
            epochs=epochs,
            hidden=hidden,
            reference=False,
            progress=False,
        )
        recalled = recall(text.causal_lm(shown.model, bos=shown.bos), shown.canaries, shown.contexts)
        records += [
            {"hidden": hidden, "epochs": epochs, "copies": copies or "twins", **recalled.record(copies)}
            for copies in recalled.copies.unique().tolist()
        ]
    return records
