"""Figures of language models: losses, extraction, membership, canaries, change by a fine-tune, retraining, capacity."""

from kernelmem.plotting.text.comparison import change_figure as change_figure
from kernelmem.plotting.text.extraction import extraction_figure as extraction_figure
from kernelmem.plotting.text.losses import token_losses_figure as token_losses_figure
from kernelmem.plotting.text.membership import text_membership_figure as text_membership_figure
from kernelmem.plotting.text.pairs import paired_test_figure as paired_test_figure
from kernelmem.plotting.text.retraining import capacity_figure as capacity_figure
from kernelmem.plotting.text.retraining import counterfactual_figure as counterfactual_figure
