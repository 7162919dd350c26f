"""Scores of the training of one network, or of a few with other seeds: larger = more memorized, for every one.

- ``history``: :class:`TrainingHistory`, outputs at checkpoints;
- ``recorded_history``: the history of a recorded run;
- ``history_recorder``: a collector for the user's own training loop;
- ``output_scores``: area under the margin, EL2N, cumulative loss, forgetting, cartography, learned-at, second split;
- ``gradient_scores``: GraNd, TracIn and variance of gradients;
- ``threshold_samples``: rows with a fake class, which set the threshold of the area under the margin;
- ``prediction_depth``: first layer from which nearest neighbors give the network's prediction;
- ``self_influence``: TracIn, last checkpoint, unrolled derivative and ledger of each row on itself.
"""

from kernelmem.memorization.training_dynamics.gradient_scores import gradient_norm as gradient_norm
from kernelmem.memorization.training_dynamics.gradient_scores import tracin as tracin
from kernelmem.memorization.training_dynamics.gradient_scores import variance_of_gradients as variance_of_gradients
from kernelmem.memorization.training_dynamics.history import TrainingHistory as TrainingHistory
from kernelmem.memorization.training_dynamics.history_recorder import HistoryRecorder as HistoryRecorder
from kernelmem.memorization.training_dynamics.output_scores import area_under_margin as area_under_margin
from kernelmem.memorization.training_dynamics.output_scores import confidence as confidence
from kernelmem.memorization.training_dynamics.output_scores import correctness as correctness
from kernelmem.memorization.training_dynamics.output_scores import cumulative_loss as cumulative_loss
from kernelmem.memorization.training_dynamics.output_scores import el2n as el2n
from kernelmem.memorization.training_dynamics.output_scores import forgetting_events as forgetting_events
from kernelmem.memorization.training_dynamics.output_scores import learned_at as learned_at
from kernelmem.memorization.training_dynamics.output_scores import second_split_forgetting as second_split_forgetting
from kernelmem.memorization.training_dynamics.output_scores import variability as variability
from kernelmem.memorization.training_dynamics.prediction_depth import prediction_depth as prediction_depth
from kernelmem.memorization.training_dynamics.recorded_history import training_history as training_history
from kernelmem.memorization.training_dynamics.self_influence import self_influence_score as self_influence_score
from kernelmem.memorization.training_dynamics.threshold_samples import ThresholdSamples as ThresholdSamples
from kernelmem.memorization.training_dynamics.threshold_samples import threshold_samples as threshold_samples
