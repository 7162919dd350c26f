"""Planted examples (canaries): exposure, and lower bounds on the privacy loss of a training algorithm.

- ``exposure``: :func:`exposure`, ranks of canaries among candidates that were not planted;
- ``coverage``: :func:`canary_coverage`, how often each canary received loss, before its exposure is computed;
- ``one_run``: :func:`one_run_bound`, lower bound on ε from one training with randomly included canaries;
- ``split``: :func:`split_bound`, lower bound on ε from scores with and without a record;
- ``privacy_bound``: :class:`PrivacyBound`, the result of both.
"""

from kernelmem.memorization.canaries.coverage import CanaryCoverage as CanaryCoverage
from kernelmem.memorization.canaries.coverage import canary_coverage as canary_coverage
from kernelmem.memorization.canaries.exposure import Exposure as Exposure
from kernelmem.memorization.canaries.exposure import ExposureGroup as ExposureGroup
from kernelmem.memorization.canaries.exposure import exposure as exposure
from kernelmem.memorization.canaries.exposure import exposure_group as exposure_group
from kernelmem.memorization.canaries.one_run import one_run_bound as one_run_bound
from kernelmem.memorization.canaries.privacy_bound import PrivacyBound as PrivacyBound
from kernelmem.memorization.canaries.split import split_bound as split_bound
