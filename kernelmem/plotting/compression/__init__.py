"""Figures of code lengths of labels.

- ``online``: bits of each label in the order of an online code, and their sum.
"""

from kernelmem.plotting.compression.online import online_code_figure as online_code_figure
