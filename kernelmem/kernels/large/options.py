"""Options of a stored kernel."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from kernelmem.core.checks import as_count, as_flag, as_names, as_number, as_path
from kernelmem.kernels.ntk import Labels
from kernelmem.tangents.groups.directions import TargetLike


@dataclass(frozen=True, eq=False)
class StoreOptions:
    """Options of :func:`ntk_store`, besides those that most kernels need.

    Attributes:
        target: kernel of a scalar function of outputs and labels, as in :func:`ntk`.
        labels: integer labels that ``target`` needs, or a pair of them for x and y.
        parameters: names of the parameters to differentiate with respect to; None: those with requires_grad.
        dtype: torch.float32 or torch.float64; None: the model's own.
        device: where to compute; None: where the model is.
        tile: rows and columns of a tile; None: at most 2,048, as memory permits. A store that exists keeps its own.
        tangents: directory for files of tangents, on a disk that all workers see; kept afterwards. None: memory if they fit,
            otherwise (and for worker processes) a directory next to the store, removed when the store is complete.
        timeout: seconds after which a task of a worker process is repeated; None: no limit.
        verify: compare the tangents of each pass with autograd, as in :func:`ntk`.
    """

    target: TargetLike | None = None
    labels: Labels = field(default=None)
    parameters: Iterable[str] | None = None
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    tile: int | None = None
    tangents: str | Path | None = None
    timeout: float | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        as_flag(self.verify, "verify")
        object.__setattr__(self, "parameters", as_names(self.parameters, "parameters"))
        if self.tile is not None:
            object.__setattr__(self, "tile", as_count(self.tile, "tile"))
        if self.tangents is not None:
            object.__setattr__(self, "tangents", as_path(self.tangents, "tangents"))
        if self.timeout is not None:
            object.__setattr__(self, "timeout", as_number(self.timeout, "timeout", exclusive=True))
