"""The results as text."""

from experiments.benchmarks.ntk.engines import ENGINES

__all__ = ["table"]


def table(results: dict) -> str:
    """A block a row of the benchmark, then one line a row, then the scaling studies."""
    blocks = [_block(name, row, results["gemm_gflops"]) for name, row in results["rows"].items()]
    return "\n\n".join([*blocks, _summary(results["rows"]), *(_study(s) for s in results["studies"].values())])


def _block(name: str, row: dict, peak: float) -> str:
    lines = [
        f"{name}: {row['gflop']:.1f} GFLOP, {row['floor_s']:.4f} s at {peak:.0f} GFLOP/s",
        f"  {'':<40} {'seconds':>9} {'(range)':>17} {'default':>8} {'of peak':>8} {'peak MB':>8} {'error':>8}",
    ]
    for engine, result in row["engines"].items():
        title = ENGINES[engine].title
        if "median" not in result:
            lines.append(f"  {title:<40} {result['status']}: {result['reason']}")
            continue
        span = f"({result['min']:.3g}-{result['max']:.3g})"
        error = max(result["error_rows"], result["error_all"])
        default = f"{result['default_allocator_s']:.4g}" if "default_allocator_s" in result else ""
        note = "" if result["warm"] else "  cold"
        note += "" if result["status"] == "ok" else f"  {result['status']}"
        note += "" if result["correct"] else "  WRONG"
        lines.append(
            f"  {title:<40} {result['median']:>9.4g} {span:>17} {default:>8} {result['fraction_of_peak']:>8.1%}"
            f" {result['peak_bytes'] / 1e6:>8.0f} {error:>8.0e}{note}"
        )
    return "\n".join(lines)


def _summary(rows: dict[str, dict]) -> str:
    lines = [
        f"{'':<22} {'best peer':<40} {'ours x':>7} {'target':>7} {'improved':>9} {'memory':>7} {'1GiB':>6} {'verify':>7}",
        *(
            f"{name:<22} {ENGINES[row['best_peer']].title if row['best_peer'] else '-':<40}"
            f" {_number(row['times_faster']):>7} {_number(row['target']):>7}"
            f" {_number(row['times_faster_than_improved']):>9} {_number(row['peak_over_best_peer']):>7}"
            f" {_number(row['bounded_over_unbounded']):>6} {_number(row['verified_over_unverified']):>7}"
            for name, row in rows.items()
        ),
        "ours x: times faster than the best peer; improved: than torch.func with the fastest GEMM; memory: our peak over the"
        " best peer's; 1GiB: our time with that limit over that without; verify: over that with verify=False",
    ]
    return "\n".join(lines)


def _study(study: dict) -> str:
    lines = [f"{study['label']}: exponent {_number(study['exponent'])}, last two {_number(study['last_exponent'])}"]
    lines += [
        f"  {p['size']:>6} {p['median']:>9.4g} s {p['peak_bytes'] / 1e6:>8.0f} MB  error {p['error']:.0e}"
        for p in study["points"]
    ]
    lines += [f"  {size:>6} {reason}" for size, reason in study["failures"].items()]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
