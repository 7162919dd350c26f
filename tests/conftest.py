"""Settings of all tests: two hypothesis profiles, one thread a worker."""

import os

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(int(os.environ.get("KERNELMEM_TEST_THREADS", "1")))
common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
# The same examples in every run, so that a change is judged by what it changes; `make soak` draws new ones.
settings.register_profile("default", max_examples=30, derandomize=True, **common)
# hypothesis derandomizes wherever it believes to run in continuous integration
settings.register_profile("soak", max_examples=1000, derandomize=False, print_blob=True, **common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
