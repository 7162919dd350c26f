"""Memorization audit of a trained classifier: one call, one report.

- ``audit``: the function ``audit`` and its ``AuditOptions``
- ``result``: ``Audit``, with files, table, figure and summary
- ``document``: dataclasses of plain values, the content of audit.json
- ``schema``: the same for the next version of audit.json
- ``analysis``: statistics of every row, from kernels, outputs and labels
- ``verdict``: conditions for a claim, headline and limits
- ``fingerprint``: hashes, counts and duplicates of data and model
- ``report``: the HTML page, its drawings and thumbnails
"""

from kernelmem.auditing.audit import AuditOptions as AuditOptions
from kernelmem.auditing.audit import audit as audit
from kernelmem.auditing.document import AuditDocument as AuditDocument
from kernelmem.auditing.result import Audit as Audit
