"""Canaries in text: random secrets inserted by coins, proof that they were trained on, exposure, paired tests.

- ``design``: :func:`canaries`, pairs of canaries; :class:`Canaries`;
- ``encoding``: token ids of canaries;
- ``insertion``: :class:`CanaryRows`, training rows with the copies, from :meth:`Canaries.insert`;
- ``training_rows``: rows and targets in batches of training data;
- ``coverage``: :func:`coverage`, that every copy receives loss and no twin does;
- ``search``: exact ranks by a pruned tree, and ranks among random secrets;
- ``null``: exposure of canaries that were not inserted, from the theory;
- ``exposure``: :func:`exposure`, bits of an exact p-value by number of copies;
- ``paired_test``: :func:`paired_test`, inserted canaries against their twins.
"""

from kernelmem.text.canary.coverage import TextCoverage as TextCoverage
from kernelmem.text.canary.coverage import coverage as coverage
from kernelmem.text.canary.design import Canaries as Canaries
from kernelmem.text.canary.design import canaries as canaries
from kernelmem.text.canary.exposure import ExposureTier as ExposureTier
from kernelmem.text.canary.exposure import SecretExposure as SecretExposure
from kernelmem.text.canary.exposure import exposure as exposure
from kernelmem.text.canary.insertion import CanaryRows as CanaryRows
from kernelmem.text.canary.paired_test import PairCount as PairCount
from kernelmem.text.canary.paired_test import PairedTest as PairedTest
from kernelmem.text.canary.paired_test import paired_test as paired_test
