"""Content of a text audit as plain values.

- ``document``: :class:`TextAuditDocument`, the content of audit.json;
- ``identity``: context of the audit, identity of model and documents;
- ``verdicts``: validity gates and verdicts;
- ``answers``: membership, extraction, canaries and change in numbers;
- ``findings``: extracted spans, canaries and documents, one by one.
"""

from kernelmem.auditing.text.schema.answers import CanaryAnswer as CanaryAnswer
from kernelmem.auditing.text.schema.answers import CanaryTier as CanaryTier
from kernelmem.auditing.text.schema.answers import ChangeAnswer as ChangeAnswer
from kernelmem.auditing.text.schema.answers import ChangeGroup as ChangeGroup
from kernelmem.auditing.text.schema.answers import ExtractionAnswer as ExtractionAnswer
from kernelmem.auditing.text.schema.answers import ExtractionRate as ExtractionRate
from kernelmem.auditing.text.schema.answers import MembershipAnswer as MembershipAnswer
from kernelmem.auditing.text.schema.answers import TextAttack as TextAttack
from kernelmem.auditing.text.schema.document import KIND as KIND
from kernelmem.auditing.text.schema.document import TEXT_SCHEMA_VERSION as TEXT_SCHEMA_VERSION
from kernelmem.auditing.text.schema.document import TextAuditDocument as TextAuditDocument
from kernelmem.auditing.text.schema.findings import CanaryFinding as CanaryFinding
from kernelmem.auditing.text.schema.findings import DocumentFinding as DocumentFinding
from kernelmem.auditing.text.schema.findings import DocumentTable as DocumentTable
from kernelmem.auditing.text.schema.findings import ExtractedSpan as ExtractedSpan
from kernelmem.auditing.text.schema.identity import LanguageModelIdentity as LanguageModelIdentity
from kernelmem.auditing.text.schema.identity import Reveal as Reveal
from kernelmem.auditing.text.schema.identity import TextContext as TextContext
from kernelmem.auditing.text.schema.identity import TextData as TextData
from kernelmem.auditing.text.schema.verdicts import Question as Question
from kernelmem.auditing.text.schema.verdicts import Status as Status
from kernelmem.auditing.text.schema.verdicts import TextGate as TextGate
from kernelmem.auditing.text.schema.verdicts import TextVerdict as TextVerdict
