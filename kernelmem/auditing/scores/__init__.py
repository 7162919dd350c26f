"""Answers of an audit from kernel, outputs and labels of its rows.

- ``kernel_scores``: leave-one-out predictions of every row, on the network's own kernel;
- ``kernel_answer``: memorized share without retraining, its test and its power;
- ``findings``: ranked rows with reasons, and suspected wrong labels;
- ``slices``: results by class and group, corrected for their number;
- ``comparisons``: scores compared with retraining and with known wrong labels;
- ``compression``: the labels in bits;
- ``leak``: membership inference against the audited network and its training.
"""

from kernelmem.auditing.scores.comparisons import agreements as agreements
from kernelmem.auditing.scores.comparisons import flip_detection as flip_detection
from kernelmem.auditing.scores.compression import LabelBits as LabelBits
from kernelmem.auditing.scores.compression import label_bits as label_bits
from kernelmem.auditing.scores.findings import row_findings as row_findings
from kernelmem.auditing.scores.findings import row_table as row_table
from kernelmem.auditing.scores.findings import suspected_labels as suspected_labels
from kernelmem.auditing.scores.kernel_answer import kernel_how_much as kernel_how_much
from kernelmem.auditing.scores.kernel_answer import kernel_power as kernel_power
from kernelmem.auditing.scores.kernel_answer import permuted_alarms as permuted_alarms
from kernelmem.auditing.scores.kernel_scores import KernelScores as KernelScores
from kernelmem.auditing.scores.kernel_scores import kernel_scores as kernel_scores
from kernelmem.auditing.scores.leak import leak as leak
from kernelmem.auditing.scores.slices import slices as slices
