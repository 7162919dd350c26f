"""Figures of language models: what a fine-tune learned and lost."""

from kernelmem.plotting.text.comparison import change_figure as change_figure
