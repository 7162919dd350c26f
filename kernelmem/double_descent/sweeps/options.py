"""Options of sweeps: what is trained (``SweepOptions``) and where and how it is computed (``Execution``)."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from kernelmem.core.checks import (
    as_count,
    as_device,
    as_float_dtype,
    as_list,
    as_number,
    as_path,
    check_callable,
    check_choice,
    check_instance,
)
from kernelmem.core.options import MEMORY, as_bytes
from kernelmem.double_descent.sweeps.threshold import Threshold

MAX_SEEDS = 100_000
MAX_WIDTH = 2**24

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

    Raises:
        InputError: a field is of another type or out of range.
    """

    width: int | tuple[int, ...] = 16
    n: int | None = None
    control: int = 4
    make_model: Callable[..., nn.Module] | None = None
    train: Train | None = None
    threshold: Threshold | None = None
    metric: Literal["test_error", "test_loss"] | None = None
    epsilon: float = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.width, int) or self.make_model is None:
            for width in [self.width] if isinstance(self.width, int) else as_list(self.width, "width"):
                as_count(width, "width", maximum=MAX_WIDTH)
        if self.n is not None:
            as_count(self.n, "n")
        as_count(self.control, "control", minimum=0, maximum=MAX_SEEDS)
        if self.make_model is not None:
            check_callable(self.make_model, "make_model", ("width",), types=True)
        if self.train is not None:
            check_callable(self.train, "train", ("model", "x", "y", "seed"))
        if self.threshold is not None:
            check_instance(self.threshold, "threshold", Threshold, hint="pass the result of find_threshold")
        check_choice(self.metric, "metric", (None, "test_error", "test_loss"))
        as_number(self.epsilon, "epsilon", maximum=1.0)


@dataclass(frozen=True, eq=False)
class Execution:
    """Where and how networks are trained.

    Attributes:
        out: directory in whose folder ``chunks`` the metrics of finished networks are saved; the same call resumes from
            there with equal results. A changed ``make_model`` or ``train`` with the same name is not detected. None:
            nothing is saved.
        chunk: number of networks trained in one batch and saved together; None: about 32.
        executor: any PEP 3148 executor, one task per chunk, which runs again if its worker dies (with processes
            ``make_model`` and ``train`` must be importable); None: networks are trained in this process. A worker process
            uses one thread, and results of another number of threads agree to rounding only.
        dtype: floating-point type of the training, float32 or float64.
        device: device of the training; None: the CPU.
        memory: bytes that one batch of networks may allocate.
        timeout: seconds after which a chunk that has not ended is given up in its worker process, which is killed, and runs
            again in a new one, at most three times in all; None: no limit. For other executors see
            ``kernelmem.core.tasks.run_tasks``.

    Raises:
        InputError: a field is of another type or out of range, or this machine does not have the device.
    """

    out: str | Path | None = None
    chunk: int | None = None
    executor: Executor | None = None
    dtype: torch.dtype = torch.float32
    device: str | None = None
    memory: int | str = MEMORY
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.out is not None:
            as_path(self.out, "out")
        if self.chunk is not None:
            as_count(self.chunk, "chunk")
        if self.executor is not None:
            check_instance(self.executor, "executor", Executor, hint="pass concurrent.futures.ProcessPoolExecutor()")
        if self.timeout is not None:
            as_number(self.timeout, "timeout", exclusive=True)
        as_float_dtype(self.dtype)
        if self.device is not None:
            as_device(self.device)
        as_bytes(self.memory)


OPTIONS = SweepOptions()  # defaults
EXECUTION = Execution()
