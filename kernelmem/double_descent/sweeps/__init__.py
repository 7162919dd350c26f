"""Sweeps of many trained networks, and random features, with intervals over seeds and a control without label noise.

sweep.py             sweep: networks over width, depth, samples, steps, noise or ridge
random_features.py   feature_sweep: random-feature regression over width, samples, ridge or noise
phase_diagram.py     phase_diagram: grid over width, samples, steps and noise
threshold_search.py  find_threshold: interpolation threshold by bisection, before the sweep
threshold.py         Threshold, crossing: interpolation threshold of given training errors
peak.py              Peak, peak: cross-fitted rise and fall of a mean curve
result.py            Sweep, Curves: results
options.py           SweepOptions, Execution: options
training_sets.py     training sets of each seed, nested along the axis (internal)
jobs.py              chunks of networks, trained and kept on disk (internal)
"""

from kernelmem.double_descent.sweeps.options import Execution as Execution
from kernelmem.double_descent.sweeps.options import SweepOptions as SweepOptions
from kernelmem.double_descent.sweeps.peak import Peak as Peak
from kernelmem.double_descent.sweeps.peak import peak as peak
from kernelmem.double_descent.sweeps.phase_diagram import Grid as Grid
from kernelmem.double_descent.sweeps.phase_diagram import PhaseDiagram as PhaseDiagram
from kernelmem.double_descent.sweeps.phase_diagram import phase_diagram as phase_diagram
from kernelmem.double_descent.sweeps.random_features import FeatureOptions as FeatureOptions
from kernelmem.double_descent.sweeps.random_features import feature_sweep as feature_sweep
from kernelmem.double_descent.sweeps.random_features import random_features as random_features
from kernelmem.double_descent.sweeps.result import Curves as Curves
from kernelmem.double_descent.sweeps.result import Sweep as Sweep
from kernelmem.double_descent.sweeps.sweep import ThresholdWarning as ThresholdWarning
from kernelmem.double_descent.sweeps.sweep import sweep as sweep
from kernelmem.double_descent.sweeps.threshold import Threshold as Threshold
from kernelmem.double_descent.sweeps.threshold import crossing as crossing
from kernelmem.double_descent.sweeps.threshold_search import SearchOptions as SearchOptions
from kernelmem.double_descent.sweeps.threshold_search import bisect as bisect
from kernelmem.double_descent.sweeps.threshold_search import find_threshold as find_threshold
