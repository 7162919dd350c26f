"""Figures of language models: losses of tokens, extraction, membership, pairs of canaries, change by a fine-tune."""

from kernelmem.plotting.text.comparison import change_figure as change_figure
from kernelmem.plotting.text.extraction import extraction_figure as extraction_figure
from kernelmem.plotting.text.losses import token_losses_figure as token_losses_figure
from kernelmem.plotting.text.membership import text_membership_figure as text_membership_figure
from kernelmem.plotting.text.pairs import paired_test_figure as paired_test_figure
