"""Figures, from arrays or from objects with the listed attributes; every function returns a matplotlib figure.

- ``style``: palette, matplotlib parameters, ticks, error bands, SVG and PNG files of a figure
- ``notebook_figure``: the figure class, which notebooks display without a magic command
- ``compression/``: account of the labels in bits, online codes
- ``double_descent/``: sweeps, phase diagrams, predictions and theory
- ``equivalence``: errors of kernel machines compared with a network, and the movement of its kernel
- ``ledger``: contributions of training examples to one output
- ``memorization/``: retraining, datamodeling scores, exposure, membership attacks, agreement of scores
- ``ridge``: leave-one-out error against ridge
- ``spectrum``: eigenvalues of a kernel
- ``text/``: losses of tokens, extraction, membership, pairs of canaries, change by a fine-tune, retraining, capacity
"""

from kernelmem.plotting.compression import account_figure as account_figure
from kernelmem.plotting.compression import online_code_figure as online_code_figure
from kernelmem.plotting.double_descent import Theory as Theory
from kernelmem.plotting.double_descent import curve_figure as curve_figure
from kernelmem.plotting.double_descent import phase_diagram_figure as phase_diagram_figure
from kernelmem.plotting.double_descent import prediction_figure as prediction_figure
from kernelmem.plotting.double_descent import simulation_figure as simulation_figure
from kernelmem.plotting.double_descent import sweep_figure as sweep_figure
from kernelmem.plotting.equivalence import comparison_figure as comparison_figure
from kernelmem.plotting.ledger import ledger_figure as ledger_figure
from kernelmem.plotting.memorization import exposure_figure as exposure_figure
from kernelmem.plotting.memorization import lds_figure as lds_figure
from kernelmem.plotting.memorization import retraining_figure as retraining_figure
from kernelmem.plotting.memorization import roc_figure as roc_figure
from kernelmem.plotting.memorization import score_table_figure as score_table_figure
from kernelmem.plotting.ridge import ridge_figure as ridge_figure
from kernelmem.plotting.spectrum import spectrum_figure as spectrum_figure
from kernelmem.plotting.style import BLUE as BLUE
from kernelmem.plotting.style import GRAY as GRAY
from kernelmem.plotting.style import GREEN as GREEN
from kernelmem.plotting.style import ORANGE as ORANGE
from kernelmem.plotting.style import PURPLE as PURPLE
from kernelmem.plotting.style import figure_files as figure_files
from kernelmem.plotting.style import new_figure as new_figure
from kernelmem.plotting.style import style as figure_style  # noqa: F401  (style is the file)
from kernelmem.plotting.text import capacity_figure as capacity_figure
from kernelmem.plotting.text import change_figure as change_figure
from kernelmem.plotting.text import counterfactual_figure as counterfactual_figure
from kernelmem.plotting.text import extraction_figure as extraction_figure
from kernelmem.plotting.text import paired_test_figure as paired_test_figure
from kernelmem.plotting.text import text_membership_figure as text_membership_figure
from kernelmem.plotting.text import token_losses_figure as token_losses_figure
