"""What is measured: runs, engines, targets, options of the command line."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from experiments.benchmarks.ledger.engines import ENGINES
from experiments.benchmarks.ledger.workloads import Workload

__all__ = ["ROWS", "Options", "Row"]

DIGITS, LARGE = (64, 32, 32, 10), (784, 256, 256, 10)


@dataclass(frozen=True)
class Row:
    """One run, and who analyzes it."""

    kind: str  # "peer", "long", "groups": engines; "training", "recorder"
    workload: Workload
    engines: tuple[str, ...] = ()
    outputs: str = "all"  # of "training": "all" or "one"
    target: float | None = None  # ms per step of "long"; training steps per node of "training"

    @property
    def name(self) -> str:
        """As results call it."""
        workload = self.workload
        shown = [self.kind, workload.network.replace(" ", "-"), workload.optimizer, str(workload.steps)]
        return " ".join([*shown, *(["one output"] if self.outputs == "one" else [])])

    def quick(self) -> "Row":
        """The same with few steps and rows, and with engines of 100 nodes left out."""
        small = dataclasses.replace(self.workload, steps=3, n=min(self.workload.n, 48), tests=2)
        small = dataclasses.replace(small, batch=min(small.batch, 16))
        engines = tuple(e for e in self.engines if ENGINES[e].settings.get("nodes", 0) < 100 and "steps" not in e)
        return dataclasses.replace(self, workload=small, engines=engines)


def _digits(activation: str, optimizer: str, steps: int, **options) -> Workload:
    return Workload(DIGITS, activation, optimizer, steps, **options)


def _large(optimizer: str, steps: int) -> Workload:
    return Workload(LARGE, "tanh", optimizer, steps, dtype="float64", n=256, batch=64, tests=50)


PEER = (
    Row(
        "peer",
        _digits("tanh", "momentum-decay", 30),
        (
            "ours",
            "ours-2",
            "ours-1e-11",
            "ours-1e-11-2",
            "ours-log",
            "explaind-2",
            "explaind-2-2",
            "explaind",
            "explaind-100",
        ),
    ),
    Row("peer", _digits("relu", "momentum-decay", 30), ("ours", "ours-log", "explaind-2", "explaind")),
    Row(
        "peer",
        _digits("tanh", "adamw", 30),
        ("ours", "ours-log", "explaind-2", "explaind", "explaind-steps", "explaind-steps-repaired"),
    ),
)
LONG = tuple(
    Row("long", _digits(activation, optimizer, 150), engines, target=4.0)
    for activation, optimizer, engines in (
        ("tanh", "momentum-decay", ("ours", "ours-2", "ours-1e-11", "ours-1e-11-2")),
        ("relu", "momentum-decay", ("ours", "ours-2")),
        ("tanh", "adamw", ("ours", "ours-2")),
    )
)
TRAINING = tuple(
    Row("training", _large(optimizer, 12), outputs=outputs, target=target)
    for optimizer, targets in (("sgd", (4.0, 4.0)), ("momentum", (45.0, 6.0)), ("adam", (45.0, 6.0)))
    for outputs, target in zip(("all", "one"), targets, strict=True)
)
GROUPS = tuple(
    Row("groups", _digits("tanh", optimizer, 150, dtype="float64", flipped=0.15), ("ours-groups", "ours-groups-2"))
    for optimizer in ("momentum-decay", "adamw")
)
RECORDER = (Row("recorder", _digits("tanh", "momentum-decay", 150)), Row("recorder", _large("adam", 24)))
ROWS = (*PEER, *LONG, *TRAINING, *GROUPS, *RECORDER)


@dataclass(frozen=True)
class Options:
    """km.ledger compared with ExPLAIND and compared with training: interleaved rounds, every engine in a fresh process."""

    quick: bool = False
    """Few steps and rows, one round: does the harness work?"""
    only: tuple[str, ...] = ()
    """Kinds of rows: peer, long, training, groups, recorder; none: all."""
    rounds: int = 2
    """Rounds, A B C A B C; an engine that takes over 1.5 s a call gets one."""
    calls: int = 3
    """Timed calls a process after its warm-up."""
    out: Path = Path("out/benchmarks/ledger")
    """Directory for results.json and figures; the committed ones are next to this file."""
