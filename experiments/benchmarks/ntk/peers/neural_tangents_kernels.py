"""neural-tangents' three implementations of the empirical kernel (JAX), on the same weights.

Its trace is a mean over outputs, so ours is C times it. Runs under the Python of `peers_setup`, or under the one named by
NEURAL_TANGENTS_PYTHON.
"""

import functools

import jax
import neural_tangents as nt
import numpy as np

from experiments.benchmarks.ntk.gauges import available
from experiments.benchmarks.ntk.materials import Problem
from experiments.benchmarks.ntk.peers.interface import Engine, Unsupported, fits
from experiments.benchmarks.ntk.peers.jax_networks import functional

__all__ = ["prepare_contraction", "prepare_structured", "prepare_vector_products"]


def _prepare(implementation: str, problem: Problem) -> Engine:
    network = functional(problem.workload, problem.state)
    if network is None:
        raise Unsupported("this workload is not written in JAX here")
    apply, parameters = network
    trace = problem.outputs == "trace"
    compute = jax.jit(
        nt.empirical_ntk_fn(
            apply,
            trace_axes=(-1,) if trace else (),
            vmap_axes=0,
            implementation=getattr(nt.NtkImplementation, implementation),
        )
    )
    scale = problem.n_outputs if trace else 1

    def kernel(rows: np.ndarray) -> np.ndarray:
        return scale * np.asarray(compute(rows, None, parameters))

    return Engine(kernel, jax.numpy.asarray(problem.x))


def prepare_contraction(problem: Problem) -> Engine:
    """Jacobian contraction."""
    fits(problem.jacobian_bytes, available())
    return _prepare("JACOBIAN_CONTRACTION", problem)


prepare_vector_products = functools.partial(_prepare, "NTK_VECTOR_PRODUCTS")
prepare_structured = functools.partial(_prepare, "STRUCTURED_DERIVATIVES")
