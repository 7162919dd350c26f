"""Diagnosis of a kernel: NaN and asymmetry before a solve, negative eigenvalues and duplicate rows after a failed one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike
from kernelmem.core.symmetry import measure_asymmetry
from kernelmem.kernel_machines.solvers.factorization import cholesky_in_place
from kernelmem.kernel_machines.solvers.linear_system import EPS, LinearOperator, System, as_system
from kernelmem.kernel_machines.solvers.solution import Code, Solution

EPS32 = torch.finfo(torch.float32).eps
ASYMMETRY_TOLERANCE = 1e-6  # relative to the largest entry: the rounding of a float32 kernel


@dataclass(frozen=True)
class Finding:
    """The status code of a kernel K, the numbers that explain it, and the extreme eigenvalues of K (NaN if not computed)."""

    code: Code
    detail: str
    smallest_eigenvalue: float = float("nan")
    largest_eigenvalue: float = float("nan")


def inspect_kernel(system: System, symmetrized: Tensor | None = None) -> Finding | None:
    """Look for NaN, infinities and asymmetry beyond 1e-6 of the largest entry, and return the first fault found, or None.

    Entries are read tile by tile, each pair of tiles once: n² work, no copy of the kernel. ``symmetrized``,
    (n, n) float64, is filled in the same pass with the mean of the kernel and its transpose. An operator is compared with
    its transpose on two random vectors: |u·Kv − v·Ku| at most the same share of |Ku| |v| + |u| |Kv|.
    """
    if system.matrix_free:
        return _inspect_products(system)
    if system.is_checked:
        if symmetrized is not None:
            symmetrized.copy_(system.dense())
        return None
    report = measure_asymmetry(system.tile, system.n, symmetrized, read_size=system.read_size)
    if report.not_finite is not None:
        return Finding(Code.not_finite, "the first such entry is at row {}, column {}".format(*report.not_finite))
    if report.gap > ASYMMETRY_TOLERANCE * report.largest:
        row, column = report.gap_index
        return Finding(
            Code.asymmetric,
            f"entries ({row}, {column}) and ({column}, {row}) differ by {report.gap:.3g};"
            f" the largest is {report.largest:.3g}",
        )
    return None


def inspect_and_copy(system: System) -> tuple[Finding | None, Tensor]:
    """Look for faults of a kernel and return the first one (None without faults) and a symmetric copy, (n, n) float64.

    If there is a fault, the copy is an empty tensor. Entries are inspected and copied in the same pass.
    """
    if system.matrix_free:
        finding = inspect_kernel(system)
        return finding, torch.empty(0) if finding is not None else system.symmetric()
    K = torch.empty(system.n, system.n, dtype=torch.float64, device=system.device)
    finding = inspect_kernel(system, K)
    return finding, torch.empty(0) if finding is not None else K


def diagnose(system: System) -> Finding:
    """Return why K + ridge I has no Cholesky factor, by the eigenvalues λ of K and those of HKH.

    With H = I − 11ᵀ/n and t = n eps(float32) max |λ| (n for integer entries: truncation changes each entry by less than
    one, and so an eigenvalue by less than n):

    * ``indefinite`` if HKH has an eigenvalue below −t;
    * ``conditionally_positive`` if K has one and HKH has none;
    * ``singular`` otherwise: the negative eigenvalues of K are rounding.
    """
    K = system.symmetric()
    eigenvalues = torch.linalg.eigvalsh(K)
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    row_means = K.mean(0)
    centered_eigenvalues = torch.linalg.eigvalsh(K - row_means - row_means[:, None] + row_means.mean())
    smallest_centered = float(centered_eigenvalues[0])
    allowed = _allowed_negative_eigenvalue(system, centered_eigenvalues)
    if smallest_centered < -allowed:
        detail = (
            f"smallest eigenvalue {smallest:.3g}, on zero-sum vectors {smallest_centered:.3g}, allowed -{allowed:.2g}"
        )
        return Finding(
            Code.indefinite,
            detail + describe_duplicates(duplicate_rows(system)),
            smallest,
            largest,
        )
    code = (
        Code.conditionally_positive if smallest < -_allowed_negative_eigenvalue(system, eigenvalues) else Code.singular
    )
    detail = f"eigenvalues {smallest:.3g} to {largest:.3g}, on zero-sum vectors from {smallest_centered:.3g}"
    return Finding(code, detail + describe_duplicates(duplicate_rows(system)), smallest, largest)


def duplicate_rows(system: System) -> list[tuple[int, ...]]:
    """Return groups of row numbers whose rows of the kernel are equal up to rounding, ordered by their first row.

    Rows are compared by their products with two random vectors, which takes n² work.
    """
    generator = torch.Generator().manual_seed(0)
    probes = torch.rand(system.n, 2, generator=generator, dtype=torch.float64).to(system.device) + 0.5
    images = system @ probes
    # Rounding of a product of n terms; different rows have equal images of both random vectors with probability zero.
    tolerance = 4 * system.n * system.eps * float(images.abs().max())
    sorted_rows = images[:, 0].argsort()
    groups: list[list[int]] = []
    previous_image: Tensor | None = None
    for row in sorted_rows.tolist():
        if previous_image is not None and float((images[row] - previous_image).abs().max()) <= tolerance:
            groups[-1].append(row)
        else:
            groups.append([row])
        previous_image = images[row]
    return sorted(tuple(sorted(group)) for group in groups if len(group) > 1)


def describe_duplicates(groups: list[tuple[int, ...]]) -> str:
    """Return a text that lists the first three groups of duplicate rows; an empty string without groups."""
    if not groups:
        return ""
    first_groups = ", ".join(
        "(" + ", ".join(map(str, group[:5])) + (", ..." if len(group) > 5 else "") + ")" for group in groups[:3]
    )
    return f"; duplicate rows {first_groups}" + (f" and {len(groups) - 3} more groups" if len(groups) > 3 else "")


def condition_limit(n: int) -> float:
    """Return the condition number, for n rows, above which the smallest eigenvalue may be rounding: 0.1 / (√n eps).

    Rounding moves the eigenvalues by about √n eps λ_max, so a condition beyond 1/eps is measured as about this value.
    """
    return 0.1 / (n**0.5 * EPS)


def _allowed_negative_eigenvalue(system: System, eigenvalues: Tensor) -> float:
    """Return the largest magnitude of a negative eigenvalue that rounding or truncation to integers can cause.

    ``eigenvalues`` (n,) are those of the kernel of n rows.
    """
    rounding = system.n * EPS32 * float(eigenvalues.abs().max())
    return max(rounding, float(system.n)) if system.integer else rounding


def _inspect_products(system: System) -> Finding | None:
    """Look for NaN, infinities and asymmetry in the products of an operator with two random vectors.

    The first fault found is returned, or None.
    """
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(system.n, 2, generator=generator, dtype=torch.float64).to(system.device)
    images = system @ probes
    if not bool(torch.isfinite(images).all()):
        return Finding(Code.not_finite, "found in the product with a random vector")
    u, v = probes.T
    Ku, Kv = images.T
    gap, scale = abs(float(u @ Kv - v @ Ku)), float(Ku.norm() * v.norm() + u.norm() * Kv.norm())
    if gap > max(ASYMMETRY_TOLERANCE, 10 * system.eps) * scale:
        return Finding(Code.asymmetric, f"u·Kv and v·Ku differ by {gap:.3g} relative to {scale:.3g} for random u, v")
    return None


def require_kernel(kernel: ArrayLike | LinearOperator) -> None:
    """Check that a kernel is finite, symmetric, and positive on zero-sum vectors up to float32 rounding.

    Raises:
        NumericalError: the kernel violates one of these conditions.

    Cost: one Cholesky factorization; two eigenvalue problems only if it fails.
    """
    system = as_system(kernel)
    finding, K = inspect_and_copy(system)
    if finding is None:
        # The mean diagonal is at most λ_max for positive K: a kernel that passes here is within the tolerance of diagnose.
        if cholesky_in_place(K, system.n * EPS32 * float(K.diagonal().mean().clamp_min(0)))[2]:
            return
        del K
        finding = diagnose(system)
    nan = float("nan")
    Solution(torch.empty(0), finding.code, nan, nan, detail=finding.detail).require()
