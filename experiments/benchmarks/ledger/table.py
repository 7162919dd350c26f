"""The results as Markdown: what the command prints, and what report.py puts into the README."""

from experiments.benchmarks.ledger.engines import ENGINES

__all__ = ["tables"]

FASTER, CLOSER = 100, 100_000  # targets, relative to explaind's defaults
SMALLEST = 1e-11  # residual that is asked for


def tables(results: dict) -> str:
    """A section for each kind of row that was run."""
    rows = results["rows"].values()
    sections = [
        section(chosen)
        for kind, section in SECTIONS.items()
        if (chosen := [row for row in rows if row["kind"] == kind])
    ]
    facts = results["machine"]
    head = (
        f"{facts['cpu']}, {facts['cores']} cores; Python {facts['python']}, torch {facts['torch']};"
        f" {results['rounds']} rounds of up to {results['calls']} calls. Median (range)."
    )
    return "\n\n".join([head, *sections]) + "\n"


def _peer(rows: list[dict]) -> str:
    parts = ["### Compared with ExPLAIND"]
    for row in rows:
        lines = [
            f"{row['network']}, {row['optimizer']}, {row['steps']} steps of batch {row['batch']}, {row['tests']} rows,"
            f" {row['classes']} outputs, run in {row['dtype']}:",
            "",
            *_head("", "ms per step", "residual", "peak MB (above start)", "contribution error"),
        ]
        for name, own in row["engines"].items():
            if own["status"] != "ok":
                lines.append(f"| {ENGINES[name].title} | {own['status']}: {own['reason']} | | | |")
                continue
            off = f"{own['contributions_differ']:.1e}" if "contributions_differ" in own else ""
            lines.append(
                f"| {ENGINES[name].title} | {_range(own['ms_per_step'])} | {own['residual']:.1e} |"
                f" {_peak(own)} | {off} |"
            )
        parts += ["\n".join(lines), *_compared(row)]
    parts.append(
        f"Target relative to the peer's defaults on the first run: {FASTER} times faster, {CLOSER:,} times closer."
        ' "Contribution error": the largest difference to kernelmem\'s ledger of the same outputs.'
    )
    return "\n\n".join(parts)


def _compared(row: dict) -> list[str]:
    """A sentence for each setting of the peer."""
    told = [
        f"{own['times_faster']:.3g} times faster and {own['times_closer']:.2g} times closer than {ENGINES[name].title}"
        for name, own in row.get("compared", {}).items()
    ]
    unsplit = [own["unattributed"] / own["change"] for own in row["engines"].values() if own.get("unattributed")]
    sentences = ["kernelmem with one thread is " + ";\n".join(told) + "."] if told else []
    if unsplit:
        sentences.append(
            f"The StepExplainer gives up to {max(unsplit):.2g} times the step's largest change to no example:"
            " what earlier gradients still do."
        )
    return sentences


def _long(rows: list[dict]) -> str:
    lines = [
        "### Longer runs",
        "",
        *_head("run", "", "ms per step", "residual", "rounding line", "nodes", "peak MB (above start)"),
    ]
    for row in rows:
        for name, own in row["engines"].items():
            if own["status"] != "ok":
                lines.append(f"| {_run(row)} | {ENGINES[name].title} | {own['status']} | | | | |")
                continue
            fine = own["ms_per_step"]["median"] <= row["target"] and own["residual"] <= SMALLEST
            missed = "" if fine else " (missed)"
            lines.append(
                f"| {_run(row)} | {ENGINES[name].title} | {_range(own['ms_per_step'])}{missed} | {own['residual']:.1e} |"
                f" {own['rounding']:.1e} | {own['evaluations']:.1f} | {_peak(own)} |"
            )
    lines += ["", f"Asked for: {rows[0]['target']:g} ms per step at a residual of {SMALLEST:g}."]
    return "\n".join(lines)


def _training(rows: list[dict]) -> str:
    heads = (
        "outputs",
        "threads",
        "training step, ms",
        "ledger, ms per step",
        "nodes",
        "training steps per step",
        "per node",
    )
    lines = [
        "### Compared with training",
        "",
        f"{rows[0]['network']}, float64, batch {rows[0]['batch']}, {rows[0]['tests']} rows, {rows[0]['steps']} steps:",
        "",
        *_head("", *heads, "asked for", "peak MB (above start)"),
    ]
    floors = _head(
        "",
        "outputs",
        "threads",
        "GFLOP",
        "GFLOP/s of a product",
        "floor, ms",
        "carried MB",
        "to copy that, ms",
        "of the ledger's time",
    )
    for row in rows:
        outputs = row["classes"] if row["outputs"] == "all" else 1
        for key, own in row["engines"].items():
            label = f"| {row['optimizer']} | {outputs} | {key.removeprefix('threads-')} |"
            if own["status"] != "ok":
                lines.append(f"{label} {own['status']}: {own['reason']} | | | | | | |")
                continue
            missed = "" if own["per_node"]["median"] <= row["target"] else " (missed)"
            lines.append(
                f"{label} {own['training_ms']['median']:.2f} | {_range(own['ms_per_step'])} | {own['nodes']:.1f} |"
                f" {own['per_step']['median']:.1f} | {own['per_node']['median']:.1f} | {row['target']:g}{missed} |"
                f" {_peak(own)} |"
            )
            floors.append(
                f"{label} {own['gflop']:.2f} | {own['gemm_gflops']:.0f} | {own['floor_ms']:.1f} |"
                f" {own['carried_bytes'] / 1e6:.0f} | {own['traffic_ms']:.1f} |"
                f" {own['floor_ms'] / own['ms_per_step']['median']:.0%} |"
            )
    return "\n".join([*lines, "", *floors])


def _groups(rows: list[dict]) -> str:
    lines = ["### By group", "", *_head("run", "", "ms per step", "residual", "difference to the sum over examples")]
    lines += [
        f"| {_run(row)} | {ENGINES[name].title} | {_range(own['ms_per_step'])} | {own['residual']:.1e} |"
        f" {own['contributions_differ']:.1e} |"
        if own["status"] == "ok"
        else f"| {_run(row)} | {ENGINES[name].title} | {own['status']} | | |"
        for row in rows
        for name, own in row["engines"].items()
    ]
    return "\n".join(lines)


def _recorder(rows: list[dict]) -> str:
    heads = ("without, ms per step", "recorded", "recorded, fewer checkpoints (`sqrt`)", "kB per step on disk")
    lines = ["### The recorder", "", *_head("run", *heads)]
    for row in rows:
        own = row["engines"]["recorder"]
        if own["status"] == "ok":
            shown = " | ".join(_range(own[name]) for name in ("plain_ms", "all_ms", "sqrt_ms"))
            lines.append(f"| {_run(row)} | {shown} | {own['bytes_per_step'] / 1e3:.0f} |")
        else:
            lines.append(f"| {_run(row)} | {own['status']}: {own['reason']} | | | |")
    return "\n".join(lines)


SECTIONS = {"peer": _peer, "long": _long, "training": _training, "groups": _groups, "recorder": _recorder}


def _run(row: dict) -> str:
    return f"{row['network']}, {row['optimizer']}, {row['steps']} steps, {row['dtype']}"


def _head(*titles: str) -> list[str]:
    return ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]


def _peak(own: dict) -> str:
    return f"{own['peak_bytes'] / 1e6:.0f} ({own['peak_above_bytes'] / 1e6:.0f})"


def _range(values: dict) -> str:
    return f"{values['median']:.3g} ({values['min']:.3g}..{values['max']:.3g})"
