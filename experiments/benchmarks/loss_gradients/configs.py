"""What is measured: workloads, the parameters of each row, engines, options of the command line."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["COVERS", "ENGINES", "QUICK", "ROWS", "SETUP", "Entry", "Options", "Row"]

SETUP = "python -m experiments.benchmarks.loss_gradients.peers_setup"

COVERS = {  # (workload, what a row covers): names of the parameters that the gradients are taken of, as a regular expression
    ("W4", "layers"): r"embedding|norm|\.up\.|\.down\.|readout",  # not: attention projections and positions
    ("W4", "linear"): r"\.up\.|\.down\.",
    ("GPT", "layers"): r"wpe|ln_|attn|mlp",  # not: the embedding, whose weights the readout shares
    ("GPT", "linear"): r"attn|mlp",
}


@dataclass(frozen=True)
class Row:
    """One Gram matrix."""

    workload: str
    n: int
    covers: str = "all"

    @property
    def name(self) -> str:
        """As tables and options call it."""
        return f"{self.workload}-{self.covers}-{self.n}"


ROWS = (
    Row("W1", 512),
    Row("W2", 256),
    Row("W4", 128),
    Row("W4", 128, "layers"),
    Row("W4", 128, "linear"),
    Row("GPT", 128),
    Row("GPT", 128, "layers"),
    Row("GPT", 128, "linear"),
)
QUICK = (Row("W2", 8), Row("GPT", 8, "linear"))  # every engine and one refusal, in under a minute


@dataclass(frozen=True)
class Entry:
    """One engine."""

    title: str
    function: str  # in engines.py
    own: bool = False  # no peer
    installed: bool = False  # by peers_setup


ENGINES = {
    "ours": Entry("kernelmem", "ours", own=True),
    "ours-unverified": Entry("kernelmem, verify=False", "ours_unverified", own=True),
    "torch_func": Entry("torch.func, per-example gradients + GEMM", "torch_func"),
    "dattri": Entry("dattri TracInAttributor", "dattri", installed=True),
    "dattri_llm": Entry("dattri-llm HookManager + cross-Gram", "dattri_llm", installed=True),
    "bergson": Entry("bergson InMemoryCollector + GEMM", "bergson", installed=True),
}


@dataclass(frozen=True)
class Options:
    """Gram matrices of loss gradients by km.ntk and its peers: interleaved rounds, every engine in a fresh process."""

    quick: bool = False
    """Few examples, one round, two engines at a time: does everything run? Times mean nothing."""
    only: tuple[str, ...] = ()
    """Workloads (GPT) or rows (GPT-layers-128) to run; none: all."""
    engines: tuple[str, ...] = tuple(ENGINES)
    """Engines to run."""
    rounds: int = 5
    """Rounds, A B C A B C; an engine that takes over 5 s a call gets one."""
    calls: int = 3
    """Timed calls a process after its warm-up."""
    threads: int = 2
    """Threads and cores of every engine."""
    limit: float = 120.0
    """Seconds of computation after which a process makes no further call; after twice that and a minute it is stopped."""
    keep_memory: bool = False
    """Whether the allocator keeps freed memory, as in the headline of the NTK benchmark; False: as users start Python."""
    out: Path = Path("out/benchmarks/loss_gradients")
    """Directory for results.json; the committed one is beside this file."""
