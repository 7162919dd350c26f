"""Adaptive number of quadrature nodes for the next step."""

from dataclasses import dataclass

MANY_NODES = 5  # from here on, a try with fewer nodes gains more than it risks
FIRST_WAIT, LONGEST_WAIT = 8, 512  # steps


@dataclass
class NodeSchedule:
    """Tries fewer nodes after some steps without refinement, more rarely after such a try has failed."""

    wait: int = FIRST_WAIT  # steps without refinement before fewer nodes are tried
    succeeded: int = 0
    known: int | None = None  # nodes that were enough before, if this try is one with fewer

    def next(self, tried: int, enough: int, steps: int = 1) -> int:
        """Return the number of nodes to try, given the number tried for ``steps`` steps and the number that was enough."""
        lowered, self.known = self.known is not None, None
        if enough > tried:
            self.wait, self.succeeded = (min(LONGEST_WAIT, 2 * self.wait) if lowered else self.wait), 0
            return enough
        self.wait, self.succeeded = (FIRST_WAIT if lowered else self.wait), self.succeeded + steps
        if self.succeeded < self.wait and enough < MANY_NODES:
            return enough
        self.succeeded, self.known = 0, enough
        return max(1, enough - max(1, enough // 4))
