"""Agreement of influences with replays of the training in which examples are left out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from kernelmem.core.files.result_files import Result
from kernelmem.statistics import centered_ranks, column_correlations
from kernelmem.trajectory.influence.replayed import Replay

if TYPE_CHECKING:
    import pandas as pd

MIN_AGREEMENT = 0.5
MAX_RATIO = 3.0
TINY = 1e-300  # avoids 0 / 0


@dataclass(frozen=True, eq=False, repr=False)
class ReplayCheck(Result):
    """Changes of k functions of m rows when examples are left out: predicted by influences, and replayed.

    Two kinds are left out: one example, each of the G with the largest influence; and half of the examples, G random
    halves. The replay is the recorded training in float64: the same first weights, batches and random numbers.

    Attributes:
        predicted_one: (G, m, k) minus the influence of each example left out.
        replayed_one: (G, m, k) outputs after the replay without the example, minus those with all.
        predicted_half: (H, m, k) minus the summed influence of each half.
        replayed_half: (H, m, k).
        examples: (G,) the examples left out one at a time.
        rounding: largest difference of an output between the recorded run and its replay in float64.
    """

    predicted_one: Tensor
    replayed_one: Tensor
    predicted_half: Tensor
    replayed_half: Tensor
    examples: Tensor
    rounding: float

    shapes: ClassVar = {
        "predicted_one": "Gmk",
        "replayed_one": "Gmk",
        "predicted_half": "Hmk",
        "replayed_half": "Hmk",
        "examples": "G",
    }

    @property
    def rank_agreement(self) -> dict[str, float]:
        """Spearman's correlation of predicted and replayed changes over the G replays, mean over rows and functions.

        Keys are "one" and "half". 1 for a function that neither changes; 0 for one that only one of them changes, or that
        diverges in a replay.
        """
        return {kind: _rank_agreement(*pair) for kind, pair in self._pairs().items()}

    @property
    def size_ratio(self) -> dict[str, float]:
        """Norm of the predicted changes divided by that of the replayed changes, by kind."""
        return {kind: _size_ratio(*pair) for kind, pair in self._pairs().items()}

    @property
    def trusted(self) -> bool:
        """True if for both kinds the rank agreement is at least .5 and sizes are right within a factor 3."""
        ratios = self.size_ratio.values()
        return min(self.rank_agreement.values()) >= MIN_AGREEMENT and all(
            1 / MAX_RATIO <= ratio <= MAX_RATIO for ratio in ratios
        )

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per replay, row and function: kind, predicted and replayed change."""
        import pandas as pd  # slow to import

        frames = []
        for kind, (predicted, replayed) in self._pairs().items():
            index = pd.MultiIndex.from_product(
                [range(size) for size in predicted.shape], names=["replay", "row", "output"]
            )
            columns = {"predicted": predicted.flatten().numpy(), "replayed": replayed.flatten().numpy()}
            frame = pd.DataFrame(columns, index=index).reset_index()
            frame.insert(0, "kind", kind)
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def __str__(self) -> str:
        agreement, ratio = self.rank_agreement, self.size_ratio
        lines = [
            f"compared with replays of the training ({len(self.examples)} without one of the most influential examples,"
            f" {len(self.replayed_half)} without a random half):"
        ]
        lines += [
            f"  {name}: rank correlation {agreement[kind]:.2f}, predicted change / replayed change {ratio[kind]:.2g}"
            for kind, name in (("one", "one example"), ("half", "half of them"))
        ]
        verdict = (
            "the derivative predicts the replays (rank correlation at least"
            if self.trusted
            else "NOT TRUSTED: the derivative does not predict the replays (wanted: rank correlation at least"
        )
        lines.append(f"  {verdict} {MIN_AGREEMENT:g}, sizes within a factor {MAX_RATIO:g})")
        return "\n".join(lines)

    def _pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            "one": (self.predicted_one, self.replayed_one),
            "half": (self.predicted_half, self.replayed_half),
        }


def check_by_replays(
    replay: Replay,
    influence: Tensor,  # (m, n, k)
    n_replays: int,
    advance: Callable[[int], None],
) -> ReplayCheck:
    """Replay the training 2 · ``n_replays`` + 1 times and compare the changes with influences.

    Cost: a gradient of every batch for each replay.
    """
    n = influence.shape[1]
    generator = torch.Generator().manual_seed(0)
    used = torch.cat([batch.examples for batch in replay.program.batches]).unique()
    top = influence.square().sum((0, 2))[used].argsort(descending=True, stable=True)[:n_replays]
    ones = [used[i : i + 1] for i in top.tolist()]
    halves = [used[torch.randperm(len(used), generator=generator)[: len(used) // 2]] for _ in range(n_replays)]
    all_examples = torch.ones(n, dtype=torch.float64)
    base = replay.values(all_examples, advance)
    predicted, replayed = [], []
    for group in [*ones, *halves]:
        weights = all_examples.clone()
        weights[group] = 0.0
        predicted.append(-influence[:, group].sum(1))
        replayed.append(replay.values(weights, advance) - base)
    G = len(ones)
    return ReplayCheck(
        torch.stack(predicted[:G]),
        torch.stack(replayed[:G]),
        torch.stack(predicted[G:]),
        torch.stack(replayed[G:]),
        torch.cat(ones),
        float((base - replay.recorded_values()).abs().max()),
    )


def _rank_agreement(predicted: Tensor, replayed: Tensor) -> float:
    """Return the mean over m · k functions of Spearman's correlation of changes (G, m, k) over G."""
    a, b = predicted.flatten(1), replayed.flatten(1)
    finite = b.isfinite().all(0)
    ranks_a, ranks_b = centered_ranks(a), centered_ranks(b.nan_to_num())
    correlations = column_correlations(ranks_a, ranks_b)
    unchanged = (ranks_a == 0).all(0) & (ranks_b == 0).all(0)
    correlations = torch.where(unchanged, 1.0, correlations)
    return float(torch.where(finite, correlations, 0.0).mean())


def _size_ratio(predicted: Tensor, replayed: Tensor) -> float:
    """Return |predicted| / |replayed|: 1 if both are zero, 0 if a replay diverges."""
    if not replayed.isfinite().all():
        return 0.0
    a, b = float(predicted.norm()), float(replayed.norm())
    return 1.0 if a == b else min(a / max(b, TINY), 1e300)
