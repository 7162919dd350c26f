"""The figures: every engine on every row, and the scaling of ours."""

import io

import matplotlib as mpl
from matplotlib.figure import Figure

from experiments.benchmarks.ntk.engines import ENGINES

__all__ = ["draw"]

GRAY, LIGHT = "#6b7280", "#e5e7eb"
STYLES = {  # one hue a family, one shape a member
    "ours": ("#c2410c", "D"),
    "ours-1GiB": ("#c2410c", "d"),
    "ours-unverified": ("#c2410c", "X"),
    "torch_func_recipe": ("#2b6cb0", "x"),
    "torch_func_one": ("#2b6cb0", "o"),
    "torch_func_improved": ("#2b6cb0", "+"),
    "torch_func_classes": ("#2b6cb0", "s"),
    "nngeometry": ("#6b7280", "^"),
    "backpack": ("#6b7280", "v"),
    "nt_contraction": ("#15803d", "<"),
    "nt_vector_products": ("#15803d", "P"),
    "nt_structured": ("#15803d", ">"),
}


def draw(results: dict) -> dict[str, bytes]:
    """figure.{svg,png}: time and memory; scaling.{svg,png} where studies were run."""
    files = _saved("figure", _engines(results["rows"], results["gemm_gflops"])) if results["rows"] else {}
    studies = {name: study for name, study in results["studies"].items() if study["points"]}
    return files | (_saved("scaling", _scaling(studies)) if studies else {})


def _engines(rows: dict[str, dict], peak: float) -> Figure:
    figure = Figure(figsize=(11.5, 0.42 * len(rows) + 2.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    seen = {}
    for place, row in enumerate(rows.values()):
        left.plot([row["floor_s"]] * 2, [place - 0.35, place + 0.35], color="black", lw=1.5)
        for engine, result in row["engines"].items():
            if not result.get("correct"):
                continue
            color, marker = STYLES[engine]
            options = {"color": color, "marker": marker, "ms": 6, "ls": "", "alpha": 0.85, "mew": 1.4}
            options["mfc"] = color if engine == "ours" else "none"
            seen[engine] = left.plot(result["median"], place, **options)[0]
            right.plot(result["peak_bytes"] / 1e6, place, **options)
    left.set(xscale="log", xlabel="seconds, median (bar: operation floor)", yticks=range(len(rows)))
    left.set_yticklabels(rows)
    left.set_ylim(len(rows) - 0.5, -0.5)
    left.set_title(f"float32; GEMM peak {peak:.0f} GFLOP/s", fontsize=9, loc="left", color=GRAY)
    right.set(xscale="log", xlabel="peak memory above imports, MB")
    right.set_title("wrong, unsupported and out-of-memory engines are left out", fontsize=9, loc="left", color=GRAY)
    _clean(left, right)
    handles = [seen[engine] for engine in ENGINES if engine in seen]
    titles = [ENGINES[engine].title for engine in ENGINES if engine in seen]
    figure.legend(handles, titles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _scaling(studies: dict[str, dict]) -> Figure:
    figure = Figure(figsize=(2.9 * len(studies), 4.6), layout="constrained")
    panels = figure.subplots(2, len(studies), squeeze=False)
    for (above, below), study in zip(panels.T, studies.values(), strict=True):
        sizes = [p["size"] for p in study["points"]]
        above.plot(sizes, [p["median"] for p in study["points"]], "D-", color="#c2410c", ms=4)
        below.plot(sizes, [p["peak_bytes"] / 1e6 for p in study["points"]], "D-", color="#c2410c", ms=4)
        slope = study["exponent"]
        above.set_title(f"exponent {slope:.2f}" if slope else "", fontsize=9, loc="left", color=GRAY)
        above.set(xscale="log", yscale="log", ylabel="seconds")
        below.set(xscale="log", yscale="log", xlabel=study["label"], ylabel="peak MB")
        below.axhline(2**20 * _mebibytes(study["memory"]) / 1e6, color=GRAY, lw=1, ls="--")
        below.set_title(f"dashed: memory={study['memory']!r}", fontsize=9, loc="left", color=GRAY)
        for axes in (above, below):
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=8)
            axes.xaxis.minorticks_off()
        _clean(above, below)
    return figure


def _mebibytes(text: str) -> float:
    return float(text.removesuffix("GiB")) * 1024


def _clean(*panels) -> None:
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=LIGHT, lw=0.8)
        axes.set_axisbelow(True)


def _saved(name: str, figure: Figure) -> dict[str, bytes]:
    files = {}
    with mpl.rc_context({"svg.hashsalt": "ntk", "svg.fonttype": "path", "axes.unicode_minus": False}):
        for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 160})):
            stream = io.BytesIO()
            figure.savefig(stream, format=kind, facecolor="white", **options)
            files[f"{name}.{kind}"] = stream.getvalue()
    return files
