"""Conclusions of an audit: validity gates, headline and limits, annex for auditors.

- ``gates``: conditions that must hold before a claim is made;
- ``verdict``: headline, detail, limits, and what was not tested;
- ``annex``: statements of public documents that the numbers bear on.
"""

from kernelmem.auditing.conclusions.annex import annex as annex
from kernelmem.auditing.conclusions.gates import calibration_gate as calibration_gate
from kernelmem.auditing.conclusions.gates import data_gates as data_gates
from kernelmem.auditing.conclusions.gates import kernel_gates as kernel_gates
from kernelmem.auditing.conclusions.gates import power_gate as power_gate
from kernelmem.auditing.conclusions.gates import retraining_gates as retraining_gates
from kernelmem.auditing.conclusions.verdict import not_tested as not_tested
from kernelmem.auditing.conclusions.verdict import verdict as verdict
