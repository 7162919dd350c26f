"""Content of an audit as plain values, and its files.

- ``document``: :class:`AuditDocument`, the content of audit.json, with headline, evaluation and annex;
- ``identity``: context of the audit, identity of data and model;
- ``checks``: validity gates, surrogate fidelity and power;
- ``answers``: how much is memorized, which rows, whether it can leak;
- ``compression``: the labels in bits;
- ``files``: audit.json and the files beside it, read and written;
- ``row_table``: :class:`RowTable`, the arrays per row, kept in rows.npz and rows.csv beside audit.json.
"""

from kernelmem.auditing.schema.answers import Agreement as Agreement
from kernelmem.auditing.schema.answers import AttackRate as AttackRate
from kernelmem.auditing.schema.answers import AttackResult as AttackResult
from kernelmem.auditing.schema.answers import HowMuch as HowMuch
from kernelmem.auditing.schema.answers import InfluentialRow as InfluentialRow
from kernelmem.auditing.schema.answers import Leak as Leak
from kernelmem.auditing.schema.answers import RowFinding as RowFinding
from kernelmem.auditing.schema.answers import Slice as Slice
from kernelmem.auditing.schema.answers import SuspectedLabel as SuspectedLabel
from kernelmem.auditing.schema.answers import SuspectedLabels as SuspectedLabels
from kernelmem.auditing.schema.answers import WorstRecord as WorstRecord
from kernelmem.auditing.schema.checks import Gate as Gate
from kernelmem.auditing.schema.checks import KernelFidelity as KernelFidelity
from kernelmem.auditing.schema.checks import Power as Power
from kernelmem.auditing.schema.compression import Compression as Compression
from kernelmem.auditing.schema.document import SCHEMA_VERSION as SCHEMA_VERSION
from kernelmem.auditing.schema.document import AnnexLine as AnnexLine
from kernelmem.auditing.schema.document import AuditDocument as AuditDocument
from kernelmem.auditing.schema.document import Flips as Flips
from kernelmem.auditing.schema.document import Verdict as Verdict
from kernelmem.auditing.schema.document import read_document as read_document
from kernelmem.auditing.schema.document import write_document as write_document
from kernelmem.auditing.schema.files import JSON_NAME as JSON_NAME
from kernelmem.auditing.schema.files import REPORT as REPORT
from kernelmem.auditing.schema.files import check_further_files as check_further_files
from kernelmem.auditing.schema.files import check_no_report as check_no_report
from kernelmem.auditing.schema.files import read_json_document as read_json_document
from kernelmem.auditing.schema.files import unreadable as unreadable
from kernelmem.auditing.schema.files import write_report_files as write_report_files
from kernelmem.auditing.schema.identity import Context as Context
from kernelmem.auditing.schema.identity import DataIdentity as DataIdentity
from kernelmem.auditing.schema.identity import Duplicates as Duplicates
from kernelmem.auditing.schema.identity import ModelIdentity as ModelIdentity
from kernelmem.auditing.schema.identity import versions as versions
from kernelmem.auditing.schema.row_table import ROWS_CSV as ROWS_CSV
from kernelmem.auditing.schema.row_table import ROWS_NPZ as ROWS_NPZ
from kernelmem.auditing.schema.row_table import RowTable as RowTable
