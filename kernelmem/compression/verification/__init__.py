"""Verification of predictors as codes.

- ``verify``: run all checks of a predictor, with a decoder in a process of its own;
- ``result``: the checks with their metrics.
"""

from kernelmem.compression.verification.result import Check as Check
from kernelmem.compression.verification.result import Verification as Verification
from kernelmem.compression.verification.verify import verify_code as verify_code
