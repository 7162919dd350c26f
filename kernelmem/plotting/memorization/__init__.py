"""Figures of memorization: retraining, datamodeling scores, exposure of canaries, membership attacks, agreement of scores."""

from kernelmem.plotting.memorization.attribution import lds_figure as lds_figure
from kernelmem.plotting.memorization.exposure import exposure_figure as exposure_figure
from kernelmem.plotting.memorization.membership import roc_figure as roc_figure
from kernelmem.plotting.memorization.retraining import retraining_figure as retraining_figure
from kernelmem.plotting.memorization.score_table import score_table_figure as score_table_figure
