"""Audit of a language model: membership, extraction, canaries, fine-tune change, and a redacted report.

- ``schema``: dataclasses of plain values, the content of audit.json: :class:`TextAuditDocument`.
"""

from kernelmem.auditing.text.schema import TextAuditDocument as TextAuditDocument
