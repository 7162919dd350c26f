"""Scores of leave-one-out predictions: kernel memorization, label issues, calibrated probabilities, estimated label noise.

- ``kernel_scores``: memorization and margin of ``km.leave_one_out`` as scores;
- ``calibration``: class probabilities for tools that need out-of-sample predictions;
- ``label_issues``: confident learning and label-quality scores;
- ``label_noise_estimate``: transition matrix of the label noise, and the posterior that a label is wrong;
- ``noise_mixture``: expectation maximization of this estimate.
"""

from kernelmem.memorization.leave_one_out.calibration import to_pred_probs as to_pred_probs
from kernelmem.memorization.leave_one_out.kernel_scores import leave_one_out_margin as leave_one_out_margin
from kernelmem.memorization.leave_one_out.kernel_scores import leave_one_out_memorization as leave_one_out_memorization
from kernelmem.memorization.leave_one_out.label_issues import LabelIssues as LabelIssues
from kernelmem.memorization.leave_one_out.label_issues import find_label_issues as find_label_issues
from kernelmem.memorization.leave_one_out.label_noise_estimate import LabelNoiseEstimate as LabelNoiseEstimate
from kernelmem.memorization.leave_one_out.label_noise_estimate import estimate_label_noise as estimate_label_noise
