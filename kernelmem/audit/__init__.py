"""The memorization audit: one call, one report."""

from kernelmem.audit.audit import Audit as Audit
from kernelmem.audit.audit import audit as audit
