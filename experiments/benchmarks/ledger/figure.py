"""The figure: time and residual of every engine; the ledger compared with training and compared with its floor."""

import io

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.benchmarks.ledger.engines import ENGINES

__all__ = ["draw"]

OURS, PEER, GRAY, LIGHT = "#c2410c", "#2b6cb0", "#6b7280", "#e5e7eb"
MARKERS = ("o", "s", "^", "v", "P")  # one a run
SHOWN = {  # as the points are called, above the highest or below the lowest
    "ours": ("kernelmem", 1),
    "explaind": ("explaind, defaults", 1),
    "explaind-100": ("explaind, 100 nodes", -1),
    "explaind-2": ("explaind, 2 nodes", 1),
    "explaind-steps-repaired": ("explaind, single steps", -1),
}


def draw(results: dict) -> dict[str, bytes]:
    """figure.{svg,png}, where there is something to show."""
    rows = results["rows"].values()
    peer = [row for row in rows if row["kind"] == "peer"]
    training = [row for row in rows if row["kind"] == "training"]
    panels = [(panel, own) for panel, own in ((_engines, peer), (_with_training, training)) if own]
    if not panels:
        return {}
    figure = Figure(figsize=(5.9 * len(panels), 4.4), layout="constrained")
    for axes, (panel, own) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(axes, own)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=LIGHT, lw=0.8)
        axes.set_axisbelow(True)
    return _saved(figure)


def _engines(axes: Axes, rows: list[dict]) -> None:
    """Time against residual: a color for each library, a marker for each run."""
    places: dict[str, list[tuple[float, float]]] = {name: [] for name in SHOWN}
    for row, marker in zip(rows, MARKERS, strict=False):
        axes.plot([], [], marker, color=GRAY, mfc="none", label=f"{row['network'].split()[-1]}, {row['optimizer']}")
        for name, own in row["engines"].items():
            if own["status"] == "ok" and name in SHOWN:
                place = own["ms_per_step"]["median"], max(own["residual"], 1e-17)
                places[name].append(place)
                color = PEER if ENGINES[name].peer else OURS
                axes.plot(*place, marker, color=color, mfc=color if name == "ours" else "none", ms=7, mew=1.4)
    for name, (label, side) in SHOWN.items():
        if places[name]:
            place = max(places[name], key=lambda place: side * place[1])
            options = {"ha": "center", "va": "bottom" if side > 0 else "top", "fontsize": 8}
            color = PEER if ENGINES[name].peer else OURS
            axes.annotate(label, place, (0, 8 * side), textcoords="offset points", color=color, **options)
    axes.set(xscale="log", yscale="log", xlabel="ms per step of the run", ylabel="largest residual")
    size = f"{rows[0]['tests']} rows x {rows[0]['classes']} outputs, {rows[0]['steps']} steps"
    axes.set_title(f"an account of {size}; lower left is better", fontsize=9, loc="left", color=GRAY)
    axes.margins(0.16)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)


def _with_training(axes: Axes, rows: list[dict]) -> None:
    """A line for each optimizer and number of outputs: training, floor, ledger, with one thread."""
    shown = [(row, row["engines"]["threads-1"]) for row in rows if row["engines"]["threads-1"]["status"] == "ok"]
    for place, (_, own) in enumerate(shown):
        times = own["ms_per_step"]
        axes.plot([times["min"], times["max"]], [place, place], color=OURS, lw=1.2)
        axes.plot(times["median"], place, "o", color=OURS, ms=7)
        axes.plot([own["floor_ms"]] * 2, [place - 0.3, place + 0.3], color="black", lw=1.6)
        axes.plot(own["training_ms"]["median"], place, "x", color=GRAY, ms=7, mew=1.5)
    axes.plot([], [], "x", color=GRAY, label="a step of training")
    axes.plot([], [], "|", color="black", ms=11, mew=1.6, label="operations of the ledger at the rate of a product")
    axes.plot([], [], "o", color=OURS, label="the ledger of a step")
    names = [f"{row['optimizer']}, {_outputs(row)}" for row, _ in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set(xscale="log", xlabel="ms, one thread, float64")
    axes.set_title(
        f"{rows[0]['network']}, batch {rows[0]['batch']}, {rows[0]['tests']} rows", fontsize=9, loc="left", color=GRAY
    )
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.4, -0.14), ncols=1)


def _outputs(row: dict) -> str:
    return f"{row['classes']} outputs" if row["outputs"] == "all" else "one output"


def _saved(figure: Figure) -> dict[str, bytes]:
    files = {}
    with mpl.rc_context({"svg.hashsalt": "ledger", "svg.fonttype": "path", "axes.unicode_minus": False}):
        for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 160})):
            stream = io.BytesIO()
            figure.savefig(stream, format=kind, facecolor="white", **options)
            files[f"figure.{kind}"] = stream.getvalue()
    return files
