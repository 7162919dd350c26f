"""Figures of double descent.

- ``phase_diagram``: maps of test error and memorization over width, rows, steps and noise
- ``prediction``: a learning curve predicted before training
- ``sweep``: errors, losses and memorized labels along a sweep
- ``theory``: risk curves of theory, with or without simulation
"""

from kernelmem.plotting.double_descent.phase_diagram import phase_diagram_figure as phase_diagram_figure
from kernelmem.plotting.double_descent.prediction import prediction_figure as prediction_figure
from kernelmem.plotting.double_descent.sweep import Theory as Theory
from kernelmem.plotting.double_descent.sweep import sweep_figure as sweep_figure
from kernelmem.plotting.double_descent.theory import curve_figure as curve_figure
from kernelmem.plotting.double_descent.theory import simulation_figure as simulation_figure
