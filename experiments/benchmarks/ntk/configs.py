"""What is measured: rows, sizes of the scaling studies, options of the command line."""

from dataclasses import dataclass
from pathlib import Path

from experiments.benchmarks.ntk.engines import ENGINES

__all__ = ["ROWS", "STUDIES", "Options", "Row", "Study"]


@dataclass(frozen=True)
class Row:
    """One kernel."""

    workload: str
    n: int
    outputs: str = "trace"
    target: float | None = None  # times faster than the best correct peer of the same run

    @property
    def name(self) -> str:
        """As tables and options call it."""
        return f"{self.workload}-{self.outputs}-{self.n}"

    def quick(self) -> "Row":
        """The same with few rows."""
        return Row(self.workload, max(8, self.n // 32), self.outputs)


ROWS = (
    Row("W1", 512, target=2.5),
    Row("W1", 2000, target=5.0),
    Row("W1", 512, "full", target=4.0),
    Row("W2", 256, target=2.2),
    Row("W2", 256, "full", target=3.5),
    Row("W3", 64, target=1.5),
    Row("W4", 128, target=1.8),
    Row("depthwise", 128),
    Row("vit", 64, target=1.6),
    Row("lstm", 128),
    Row("wide", 512),
    Row("W1", 10_000),
)


@dataclass(frozen=True)
class Study:
    """Time and peak memory of ours along one size."""

    name: str
    label: str
    sizes: tuple[int, ...]
    rows: tuple[Row, ...]
    memory: str = "4GiB"

    def quick(self) -> "Study":
        """Its first and third size, few rows."""
        rows = tuple(row.quick() for row in self.rows[:3:2])
        pairs = zip(self.sizes[::2], self.rows[::2], rows, strict=False)
        sizes = tuple(quick.n if size == row.n else size for size, row, quick in pairs)
        return Study(self.name, self.label, sizes, rows, self.memory)


def _study(name: str, label: str, sizes: tuple[int, ...], row, memory: str = "4GiB") -> Study:
    return Study(name, label, sizes, tuple(row(size) for size in sizes), memory)


STUDIES = (
    _study("n", "rows n (W1)", (500, 1000, 2000, 4000, 8000), lambda n: Row("W1", n)),
    _study("outputs", "outputs C", (10, 20, 50, 100, 200), lambda c: Row(f"mlp:784-512-512-{c}", 512)),
    _study("width", "width of two hidden layers", (256, 512, 1024, 2048), lambda w: Row(f"mlp:784-{w}-{w}-10", 512)),
    _study("memory", 'rows n (W1, memory="1GiB")', (1000, 2000, 5000, 10_000), lambda n: Row("W1", n), "1GiB"),
    _study("memory_pictures", 'rows n (W2, memory="1GiB")', (100, 200, 500, 1000), lambda n: Row("W2", n), "1GiB"),
)


@dataclass(frozen=True)
class Options:
    """km.ntk beside its peers: interleaved rounds, every engine in a fresh process."""

    quick: bool = False
    """Few rows of every workload, one round: does the harness work?"""
    only: tuple[str, ...] = ()
    """Workloads (W2) or rows (W2-trace-256) to run; none: all. Studies by name: n, outputs, width, memory, memory_pictures."""
    engines: tuple[str, ...] = tuple(ENGINES)
    """Engines to run."""
    rounds: int = 5
    """Rounds, A B C A B C; an engine that takes over 5 s a call gets one."""
    calls: int = 3
    """Timed calls a process after its warm-up."""
    threads: int = 2
    """Threads and cores of every engine."""
    limit: float = 120.0
    """Seconds a process may compute; beyond, a quarter of the rows is run and scaled by n²."""
    studies: bool = True
    """Whether to run the scaling studies."""
    out: Path = Path("out/benchmarks/ntk")
    """Directory for results.json and figures; the committed ones are beside this file."""
