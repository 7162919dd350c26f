"""Audit of a language model: membership, extraction, canaries, fine-tune change, and a redacted report.

- ``audit``: the function ``text_audit``
- ``options``: ``TextAuditOptions``
- ``result``: ``TextAudit``, with files, table and summary
- ``schema``: dataclasses of plain values, the content of audit.json: ``TextAuditDocument``
- ``inputs``: texts or token ids as documents, and the text that they share
- ``measurements``: membership, extraction, canaries, change, documents
- ``conclusions``: gates and verdicts
- ``redaction``: hashes in place of text
- ``summary``: the text for terminals
"""

from kernelmem.auditing.text.audit import text_audit as text_audit
from kernelmem.auditing.text.options import TextAuditOptions as TextAuditOptions
from kernelmem.auditing.text.result import TextAudit as TextAudit
from kernelmem.auditing.text.schema import TextAuditDocument as TextAuditDocument
