"""Measurements of a text audit.

- ``membership``: attacks on documents, their power and control;
- ``extraction``: what is emitted of documents, and the extracted spans;
- ``canaries``: coverage, exposure, emission and pairs of canaries;
- ``change``: losses compared with the reference model;
- ``documents``: the training documents that are known best, token by token.
"""

from kernelmem.auditing.text.measurements.canaries import CanaryResult as CanaryResult
from kernelmem.auditing.text.measurements.canaries import canary_contexts as canary_contexts
from kernelmem.auditing.text.measurements.canaries import canary_findings as canary_findings
from kernelmem.auditing.text.measurements.canaries import canary_share as canary_share
from kernelmem.auditing.text.measurements.canaries import measure_canaries as measure_canaries
from kernelmem.auditing.text.measurements.change import change as change
from kernelmem.auditing.text.measurements.documents import document_findings as document_findings
from kernelmem.auditing.text.measurements.documents import token_baseline as token_baseline
from kernelmem.auditing.text.measurements.extraction import ExtractionResult as ExtractionResult
from kernelmem.auditing.text.measurements.extraction import extract as extract
from kernelmem.auditing.text.measurements.extraction import extracted_spans as extracted_spans
from kernelmem.auditing.text.measurements.membership import PERMUTATIONS as PERMUTATIONS
from kernelmem.auditing.text.measurements.membership import MembershipResult as MembershipResult
from kernelmem.auditing.text.measurements.membership import document_table as document_table
from kernelmem.auditing.text.measurements.membership import membership as membership
