"""How many nodes are tried on the next step: what was enough for the one before, and now and then fewer."""

from dataclasses import dataclass

__all__ = ["NodeSchedule"]

MANY = 5  # nodes: where a step has so many, a try with fewer gains more than it risks


@dataclass
class NodeSchedule:
    """How many nodes are tried next: fewer after some steps that went well, more rarely where that has failed."""

    wait: int = 8  # steps that went well before fewer are tried
    met: int = 0
    known: int | None = None  # what was enough before, where this try is one with fewer

    def next(self, tried: int, enough: int, steps: int = 1) -> int:
        """The order to try, given the one that was tried for so many steps and the one that was enough."""
        lowered, self.known = self.known is not None, None
        if enough > tried:
            self.wait, self.met = (min(512, 2 * self.wait) if lowered else self.wait), 0
            return enough
        self.wait, self.met = (8 if lowered else self.wait), self.met + steps
        if self.met < self.wait and enough < MANY:
            return enough
        self.met, self.known = 0, enough
        return max(1, enough - max(1, enough // 4))
