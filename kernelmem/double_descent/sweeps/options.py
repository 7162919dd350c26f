"""Options of sweeps: what is trained (``SweepOptions``) and where and how it is computed (``Execution``)."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from kernelmem.core.options import MEMORY
from kernelmem.double_descent.sweeps.threshold import Threshold

Train: TypeAlias = Callable[[nn.Module, Tensor, Tensor, int], None]
"""A training procedure of the user: train(model, x, y, seed), in place."""


@dataclass(frozen=True, eq=False)
class SweepOptions:
    """Networks, training set and summary of a sweep.

    Attributes:
        width: hidden width (or widths) of an MLP, or the argument of ``make_model``; ignored if the width is swept.
        n: number of training examples; None: all. Ignored if the number of examples is swept.
        control: number of seeds of the control without label noise; 0: no control. It is ignored if the noise is swept.
        make_model: function from the width to a module with outputs (n, C), called after torch is seeded; None: MLPs.
        train: function train(model, x, y, seed) that trains the model in place, called after torch is seeded. It replaces
            the recipe (of which only the loss is used), requires ``make_model``, and excludes sweeps over "steps", "depth"
            and "ridge".
        threshold: interpolation threshold found before the sweep; it is stored in the result, and a ThresholdWarning is
            raised if it lies outside of the swept values.
        metric: curve whose peak is summarized; None: test error, or test loss if the number of examples is swept.
        epsilon: training error at or below which the labels count as fitted.
    """

    width: int | tuple[int, ...] = 16
    n: int | None = None
    control: int = 4
    make_model: Callable[..., nn.Module] | None = None
    train: Train | None = None
    threshold: Threshold | None = None
    metric: Literal["test_error", "test_loss"] | None = None
    epsilon: float = 0.1


@dataclass(frozen=True, eq=False)
class Execution:
    """Where and how networks are trained.

    Attributes:
        out: directory in whose folder ``chunks`` the metrics of finished networks are saved; the same call resumes from
            there with equal results. A changed ``make_model`` or ``train`` with the same name is not detected. None:
            nothing is saved.
        chunk: number of networks trained in one batch and saved together; None: about 32.
        executor: any PEP 3148 executor, one task per chunk (with processes ``make_model`` and ``train`` must be
            importable); None: networks are trained in this process.
        dtype: floating-point type of the training, float32 or float64.
        device: device of the training; None: the CPU.
        memory: bytes that one batch of networks may allocate.
    """

    out: str | Path | None = None
    chunk: int | None = None
    executor: Executor | None = None
    dtype: torch.dtype = torch.float32
    device: str | None = None
    memory: int | str = MEMORY


OPTIONS = SweepOptions()  # defaults
EXECUTION = Execution()
