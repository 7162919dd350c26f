"""Put the tables of results.json into the README and draw the figure: `python -m experiments.benchmarks.ledger.report`."""

import json
import sys
from pathlib import Path

from experiments.benchmarks.ledger.figure import draw
from experiments.benchmarks.ledger.table import tables
from kernelmem.core import write_files

__all__ = ["report"]

HEADING = "## Results"


def report(folder: Path) -> None:
    """Rewrite README.md from "## Results" on, figure.svg and figure.png."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    text = (folder / "README.md").read_text(encoding="utf-8").partition(HEADING)[0].rstrip()
    caption = "Time and residual compared with ExPLAIND; time compared with training"
    section = f"{HEADING}\n\n![{caption}](figure.svg)\n\n{tables(results)}"
    write_files(folder, {"README.md": f"{text}\n\n{section}", **draw(results)})


if __name__ == "__main__":
    report(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
