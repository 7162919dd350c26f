"""Sources of predictions: kernels, or a learner and its rows, checked and put into the order of the code."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
from torch import Tensor

from kernelmem.compression.online.kernel_scores import KernelScores, kernel_score_bytes
from kernelmem.compression.online.learner_scores import LearnerRows, LearnerScores, Train, as_learner_rows
from kernelmem.compression.online.mixture import Mixture, Scores
from kernelmem.compression.online.options import OnlineOptions
from kernelmem.core import ArrayLike, Batch, InputError
from kernelmem.core.checks import as_square_kernel, as_text, check_callable, describe
from kernelmem.kernel_machines.solvers.linear_system import require_square
from kernelmem.kernels import KernelStore

Kernel: TypeAlias = ArrayLike | KernelStore
Kernels: TypeAlias = Kernel | Sequence[Kernel] | Mapping[str, Kernel]
"""A kernel (n, n), an array or stored, a list of kernels of the same rows, or a dict of such kernels by name."""

MAX_KERNELS = 64


def mixture_of(scores: Scores, n_classes: int, options: OnlineOptions) -> Mixture:
    """Return the mixture over the grids of ``options``."""
    return Mixture(len(scores.names), n_classes, options.temperatures, options.floors, options.uniform)


@dataclass(frozen=True)
class Source:
    """Kernels of n rows by label, or a learner and its n rows."""

    n: int
    kernels: Mapping[str, Tensor | KernelStore]
    learner: tuple[Train, LearnerRows] | None = None

    @property
    def kind(self) -> str:
        """The kind of an online code, "kernel" or "learner"."""
        return "learner" if self.learner else "kernel"

    def scores(
        self,
        n_classes: int,
        options: OnlineOptions,
        order: np.ndarray,
        report: Callable[[int, int], object] = lambda done, total: None,
    ) -> Scores:
        """Return the scores of the rows in the ``order`` (n,)."""
        if self.learner is not None:
            train, rows = self.learner
            return LearnerScores(train, rows, n_classes, options, order=order, report=report)
        return KernelScores(self.kernels, options.ridges, n_classes, order)


def kernel_code_bytes(n: int, n_classes: int, options: OnlineOptions, *, streamed: bool) -> int:
    """Return the memory of the online code of one kernel of n rows, besides the kernel; ``streamed``: it is in a file."""
    n_scores = len(options.ridges)
    mixture = Mixture(n_scores, n_classes, options.temperatures, options.floors, options.uniform)
    return kernel_score_bytes(n, n_classes, n_scores, streamed=streamed) + mixture.n_bytes(n, decoding=False)


def check_memory(scores: Scores, mixture: Mixture, memory: int, *, decoding: bool = False) -> None:
    """Check that the arrays of a code fit into ``memory`` bytes.

    Raises:
        InputError: they do not.
    """
    n_bytes = scores.n_bytes(decoding=decoding) + mixture.n_bytes(len(scores), decoding=decoding)
    if n_bytes > memory:
        raise InputError(
            f"{len(scores):,} rows, {mixture.n_classes:,} classes and {len(scores.names)} scores, which need {n_bytes:,} bytes",
            expected=f"at most memory={memory:,} bytes",
            hint=f"pass memory={n_bytes} or more, or fewer ridges or kernels",
        )


def as_source(source: Kernels | Train, x: Batch | None, *, streamed: bool = False) -> Source:
    """Check kernels, or a learner and its rows; if ``streamed``, kernels in files are not read into memory.

    Raises:
        InputError: neither kernels nor a function of (x, y); kernels that are not square matrices of finite numbers and of
            one size; a learner without rows, kernels with rows.
        NumericalError: a kernel that is not symmetric.
    """
    if callable(source) and not isinstance(source, Tensor | np.ndarray | Mapping):
        check_callable(source, "train", ("x", "y"))
        if x is None:
            raise InputError(
                "a learner without rows",
                expected="the rows that it is trained on",
                hint="pass x=, the rows of the labels",
            )
        rows = as_learner_rows(x)
        return Source(len(rows), {}, (source, rows))
    if hasattr(source, "fit"):
        raise InputError(
            f"source={describe(source)}",
            expected="kernels, or a function of (x, y) that returns a fitted classifier",
            hint="pass lambda x, y: sklearn.base.clone(estimator).fit(x, y)",
        )
    if x is not None:
        raise InputError(
            f"kernels and rows x, {describe(x)}",
            expected="kernels, or a learner and rows",
            hint="pass the kernel alone",
        )
    kernels = check_kernels(source, streamed=streamed)
    return Source(next(iter(kernels.values())).shape[0], kernels)


def check_kernels(source: Kernels, *, streamed: bool = False) -> dict[str, Tensor | KernelStore]:
    """Return kernels (n, n) in float64 on the CPU by label; if ``streamed``, symmetric kernels in files as they are.

    Raises:
        InputError, NumericalError: as :func:`as_source`.
    """
    if isinstance(source, Mapping):
        named = {as_text(name, "name of a kernel"): kernel for name, kernel in source.items()}
    elif isinstance(source, list | tuple) and len(source) and all(getattr(kernel, "ndim", 0) == 2 for kernel in source):
        named = {f"{i}": kernel for i, kernel in enumerate(source)}
    else:
        named = {"": cast("Kernel", source)}
    for name, kernel in named.items():
        shape = tuple(getattr(kernel, "shape", ()))
        if len(shape) == 2 and shape[0] != shape[1]:
            raise InputError(
                f"{f'kernel {name}'.rstrip()} of shape {shape}",
                expected="a square matrix (n, n)",
                hint="for rows (n, features) pass a kernel that has not seen labels, such as km.infinite_ntk(x, depth=2), or a"
                " function train(x, y) and x=",
            )
    kernels: dict[str, Tensor | KernelStore] = {}
    for name, kernel in named.items():
        if streamed and isinstance(kernel, KernelStore) and kernel.symmetric:
            require_square(kernel)
            kernels[name] = kernel
        else:
            kernels[name] = as_square_kernel(kernel, f"kernel {name}".rstrip()).detach().cpu()
    sizes = sorted({kernel.shape[0] for kernel in kernels.values()})
    if len(sizes) != 1 or len(kernels) > MAX_KERNELS:
        raise InputError(
            f"{len(kernels)} kernels, of {sizes} rows",
            expected=f"1 to {MAX_KERNELS} kernels of the same rows",
            hint="compute all kernels on the same rows",
        )
    return kernels
