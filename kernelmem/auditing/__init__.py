"""Memorization audits of trained classifiers and of language models: one call, one report.

- ``audit``: the function ``audit``
- ``options``: ``AuditOptions``
- ``result``: ``Audit``, with files, table, figure and summary
- ``schema``: dataclasses of plain values, the content of audit.json, and the arrays of rows.npz
- ``data_checks``: inputs, identity, labels, near-duplicates
- ``scores``: kernel method, ranked rows, slices, attacks
- ``retraining``: shadow models within a budget, verification of rows
- ``conclusions``: gates, headline, annex
- ``report``: the HTML page, its drawings and thumbnails
- ``text``: ``text_audit``, the audit of a language model
"""

from kernelmem.auditing.audit import audit as audit
from kernelmem.auditing.options import AuditOptions as AuditOptions
from kernelmem.auditing.result import Audit as Audit
from kernelmem.auditing.schema import AuditDocument as AuditDocument
from kernelmem.auditing.text import TextAudit as TextAudit
from kernelmem.auditing.text import TextAuditDocument as TextAuditDocument
from kernelmem.auditing.text import TextAuditOptions as TextAuditOptions
from kernelmem.auditing.text import text_audit as text_audit
