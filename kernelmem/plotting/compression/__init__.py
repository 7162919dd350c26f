"""Figures of code lengths of labels.

- ``account``: bars of the account of labels and of its null, memorized bits of each row;
- ``online``: bits of each label in the order of an online code, and their sum.
"""

from kernelmem.plotting.compression.account import account_figure as account_figure
from kernelmem.plotting.compression.online import online_code_figure as online_code_figure
