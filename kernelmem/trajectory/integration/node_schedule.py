"""Adaptive number of quadrature nodes for the next step."""

from dataclasses import dataclass

MANY_NODES = (
    5  # with at least this many nodes, fewer nodes are tried after every step: the possible saving exceeds the risk
)
FIRST_WAIT, LONGEST_WAIT = 8, 512  # steps


@dataclass
class NodeSchedule:
    """Tries fewer nodes after some steps without refinement, more rarely after such a try has failed."""

    wait: int = FIRST_WAIT  # steps without refinement before fewer nodes are tried
    n_succeeded: int = 0  # steps since the last refinement or try
    fallback: int | None = None  # last sufficient number of nodes, while a smaller number is being tried

    def next_count(self, n_tried: int, n_sufficient: int, steps: int = 1) -> int:
        """Return the number of nodes to try next, after ``n_tried`` nodes were tried for ``steps`` steps.

        ``n_sufficient`` is the number of nodes that these steps needed.
        """
        was_lowered, self.fallback = self.fallback is not None, None
        if n_sufficient > n_tried:
            self.wait, self.n_succeeded = (min(LONGEST_WAIT, 2 * self.wait) if was_lowered else self.wait), 0
            return n_sufficient
        self.wait, self.n_succeeded = (FIRST_WAIT if was_lowered else self.wait), self.n_succeeded + steps
        if self.n_succeeded < self.wait and n_sufficient < MANY_NODES:
            return n_sufficient
        self.n_succeeded, self.fallback = 0, n_sufficient
        return max(1, n_sufficient - max(1, n_sufficient // 4))
