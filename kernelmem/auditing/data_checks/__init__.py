"""Inputs of an audit and what is checked about the data before any score.

- ``inputs``: rows and labels as users have them, outputs of the model;
- ``row_kernel``: kernel of all rows, in memory or in a file;
- ``class_labels``: labels as text, numbers from 0 or 1, or −1 and 1;
- ``identity``: hashes, counts, equal rows;
- ``near_duplicates``: groups of rows whose tangents are almost parallel.
"""

from kernelmem.auditing.data_checks.class_labels import ClassLabels as ClassLabels
from kernelmem.auditing.data_checks.class_labels import read_class_labels as read_class_labels
from kernelmem.auditing.data_checks.identity import data_identity as data_identity
from kernelmem.auditing.data_checks.identity import find_duplicates as find_duplicates
from kernelmem.auditing.data_checks.identity import model_identity as model_identity
from kernelmem.auditing.data_checks.inputs import AuditInputs as AuditInputs
from kernelmem.auditing.data_checks.inputs import LabeledRows as LabeledRows
from kernelmem.auditing.data_checks.inputs import read_groups as read_groups
from kernelmem.auditing.data_checks.inputs import read_rows as read_rows
from kernelmem.auditing.data_checks.inputs import with_outputs as with_outputs
from kernelmem.auditing.data_checks.near_duplicates import NearDuplicates as NearDuplicates
from kernelmem.auditing.data_checks.near_duplicates import cosine_blocks as cosine_blocks
from kernelmem.auditing.data_checks.near_duplicates import find_near_duplicates as find_near_duplicates
from kernelmem.auditing.data_checks.row_kernel import AuditKernel as AuditKernel
from kernelmem.auditing.data_checks.row_kernel import audit_kernel as audit_kernel
from kernelmem.auditing.data_checks.row_kernel import kernel_blocks as kernel_blocks
from kernelmem.auditing.data_checks.row_kernel import kernel_entries as kernel_entries
from kernelmem.auditing.data_checks.row_kernel import kernel_of_rows as kernel_of_rows
