"""Measures of memorization: retraining without examples, scores of one run, membership inference, canaries.

- ``output_statistics``: accuracy, probability, log-odds, margin and log-likelihood of outputs at the label;
- ``score``: :class:`Score`, one number per example with its standard error, level and meaning;
- ``shadows/``: :class:`ShadowEnsemble`, many models trained on random subsets of the rows;
- ``retraining/``: memorization and influence as differences between models with and without a row;
- ``training_dynamics/``: scores of one recorded run;
- ``leave_one_out/``: scores of leave-one-out predictions, label issues, estimated label noise;
- ``score_table``: :class:`ScoreTable`, all scores of the same rows and their agreement;
- ``membership/``: attacks that infer which rows were trained on;
- ``canaries/``: exposure of planted examples, and lower bounds on privacy loss;
- ``attribution/``: tests of attributions against retrained subsets.
"""

from kernelmem.memorization.attribution import LDS as LDS
from kernelmem.memorization.attribution import QLD as QLD
from kernelmem.memorization.attribution import lds as lds
from kernelmem.memorization.attribution import qld as qld
from kernelmem.memorization.canaries import CanaryCoverage as CanaryCoverage
from kernelmem.memorization.canaries import Exposure as Exposure
from kernelmem.memorization.canaries import PrivacyBound as PrivacyBound
from kernelmem.memorization.canaries import canary_coverage as canary_coverage
from kernelmem.memorization.canaries import exposure as exposure
from kernelmem.memorization.canaries import one_run_bound as one_run_bound
from kernelmem.memorization.canaries import split_bound as split_bound
from kernelmem.memorization.leave_one_out import LabelIssues as LabelIssues
from kernelmem.memorization.leave_one_out import LabelNoiseEstimate as LabelNoiseEstimate
from kernelmem.memorization.leave_one_out import estimate_label_noise as estimate_label_noise
from kernelmem.memorization.leave_one_out import find_label_issues as find_label_issues
from kernelmem.memorization.leave_one_out import to_pred_probs as to_pred_probs
from kernelmem.memorization.retraining import Retraining as Retraining
from kernelmem.memorization.retraining import c_score as c_score
from kernelmem.memorization.retraining import counterfactual_memorization as counterfactual_memorization
from kernelmem.memorization.retraining import feldman_zhang as feldman_zhang
from kernelmem.memorization.score import Score as Score
from kernelmem.memorization.score_table import ScoreTable as ScoreTable
from kernelmem.memorization.score_table import memorization_scores as memorization_scores
from kernelmem.memorization.shadows import EnsembleTraining as EnsembleTraining
from kernelmem.memorization.shadows import ShadowEnsemble as ShadowEnsemble
from kernelmem.memorization.shadows import ShadowOptions as ShadowOptions
from kernelmem.memorization.shadows import shadow_ensemble as shadow_ensemble
from kernelmem.memorization.training_dynamics import HistoryRecorder as HistoryRecorder
from kernelmem.memorization.training_dynamics import TrainingHistory as TrainingHistory
from kernelmem.memorization.training_dynamics import training_history as training_history
