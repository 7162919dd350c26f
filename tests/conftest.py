"""Settings of all tests: two hypothesis profiles, one thread per worker."""

import gc
import os

# Before NumPy and torch load their BLAS. Two workers with two threads each on two cores take four times as long as one
# thread each, and processes that tests start inherit the limit.
THREADS = os.environ.get("KERNELMEM_TEST_THREADS", "1")
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", THREADS)

import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

torch.set_num_threads(int(THREADS))
common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
# The same examples in every run, so that a change is judged by what it changes; `make soak` draws new ones.
settings.register_profile("default", max_examples=20, derandomize=True, **common)
# hypothesis derandomizes wherever it believes to run in continuous integration
settings.register_profile("soak", max_examples=1000, derandomize=False, print_blob=True, **common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


# Collection only makes objects that last (modules, thousands of tests): the garbage collector would search them again and
# again, while they are made and during every test.
gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()
