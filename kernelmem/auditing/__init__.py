"""Memorization audit of a trained classifier: one call, one report.

- ``audit``: the function ``audit``
- ``options``: ``AuditOptions``
- ``result``: ``Audit``, with files, table, figure and summary
- ``schema``: dataclasses of plain values, the content of audit.json, and the arrays of rows.npz
- ``data_checks``: inputs, identity, labels, near-duplicates
- ``scores``: kernel method, ranked rows, slices, attacks
- ``retraining``: shadow models within a budget, verification of rows
- ``conclusions``: gates, headline, annex
- ``report``: the HTML page, its drawings and thumbnails
"""

from kernelmem.auditing.audit import audit as audit
from kernelmem.auditing.options import AuditOptions as AuditOptions
from kernelmem.auditing.result import Audit as Audit
from kernelmem.auditing.schema import AuditDocument as AuditDocument
