"""The memorization audit: one call, one report."""

from kernelmem.auditing.audit import Audit as Audit
from kernelmem.auditing.audit import audit as audit
