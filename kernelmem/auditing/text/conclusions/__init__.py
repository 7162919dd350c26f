"""Conclusions of a text audit: validity gates, and one verdict for each question."""

from kernelmem.auditing.text.conclusions.gates import canary_gates as canary_gates
from kernelmem.auditing.text.conclusions.gates import document_gates as document_gates
from kernelmem.auditing.text.conclusions.verdicts import canary_verdict as canary_verdict
from kernelmem.auditing.text.conclusions.verdicts import change_verdict as change_verdict
from kernelmem.auditing.text.conclusions.verdicts import extraction_verdict as extraction_verdict
from kernelmem.auditing.text.conclusions.verdicts import membership_verdict as membership_verdict
from kernelmem.auditing.text.conclusions.verdicts import not_tested as not_tested
