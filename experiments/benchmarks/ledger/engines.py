"""Who is measured: name, title, module, settings, threads."""

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["ENGINES", "PEER_PACKAGES", "ROOT", "Entry"]

ROOT = Path(__file__).parents[3]
PEER_PACKAGES = ROOT / ".venv-peers" / "explaind"
PACKAGE = "experiments.benchmarks.ledger.peers"


@dataclass(frozen=True)
class Entry:
    """One engine."""

    name: str
    title: str
    module: str
    function: str = "prepare"
    settings: dict[str, Any] = field(default_factory=dict)
    threads: int = 1

    @property
    def peer(self) -> bool:
        """Whether it needs what peers_setup installs."""
        return self.module != "ours"

    def missing(self) -> str | None:
        """Why it cannot start, if so."""
        if not self.peer or PEER_PACKAGES.exists():
            return None
        return "see `python -m experiments.benchmarks.ledger.peers_setup`"

    def prepare(self) -> Any:
        """The function from a problem to an engine."""
        return getattr(import_module(f"{PACKAGE}.{self.module}"), self.function)


ENGINES = {
    entry.name: entry
    for entry in (
        Entry("ours", "kernelmem", "ours"),
        Entry("ours-2", "kernelmem, 2 threads", "ours", threads=2),
        Entry("ours-1e-11", "kernelmem, tolerance 1e-11", "ours", settings={"tolerance": 1e-11}),
        Entry(
            "ours-1e-11-2", "kernelmem, tolerance 1e-11, 2 threads", "ours", settings={"tolerance": 1e-11}, threads=2
        ),
        Entry("ours-log", "kernelmem, log-probabilities", "ours", settings={"log_probabilities": True}),
        Entry("ours-groups", "kernelmem, 11 groups", "ours", "prepare_groups"),
        Entry("ours-groups-2", "kernelmem, 11 groups, 2 threads", "ours", "prepare_groups", threads=2),
        Entry(
            "explaind",
            "explaind, defaults (100 nodes, first 4 steps 1,000)",
            "explaind_paths",
            settings={"nodes": 100, "early_nodes": 1000, "half": True},
        ),
        Entry("explaind-100", "explaind, 100 nodes, float32", "explaind_paths", settings={"nodes": 100}),
        Entry("explaind-2", "explaind, 2 nodes, float32", "explaind_paths", settings={"nodes": 2}),
        Entry(
            "explaind-2-2", "explaind, 2 nodes, float32, 2 threads", "explaind_paths", settings={"nodes": 2}, threads=2
        ),
        Entry(
            "explaind-steps",
            "explaind, StepExplainer (10 nodes), one step",
            "explaind_steps",
            settings={"first": 10, "steps": 1},
        ),
        Entry(
            "explaind-steps-repaired",
            "the same, its first node corrected",
            "explaind_steps",
            settings={"first": 10, "steps": 1, "repaired": True},
        ),
    )
}
