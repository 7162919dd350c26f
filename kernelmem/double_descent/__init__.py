"""Double descent: sweeps of trained networks, predictions before training, theory, and variance decompositions.

    sweeps/      sweep, feature_sweep, phase_diagram, find_threshold and their results
    prediction/  predict_curve, preregister, feature_theory: expected error before training
    presets/     settings that show double descent on scikit-learn's digits in seconds
    theory/      exact and asymptotic curves of linear models, random features and kernel ridge regression
    variance/    bias and variance, ANOVA over sources of randomness, effective parameters
    argument_checks.py  checks of axes, squared coefficients and seeds (internal)

This package exports the names of ``sweeps`` and ``prediction``; the packages ``presets``, ``theory`` and ``variance`` export
theirs.
"""

from kernelmem.double_descent.prediction.predict import Prediction as Prediction
from kernelmem.double_descent.prediction.predict import PredictionOptions as PredictionOptions
from kernelmem.double_descent.prediction.predict import predict_curve as predict_curve
from kernelmem.double_descent.prediction.preregistered import PreregisteredPrediction as PreregisteredPrediction
from kernelmem.double_descent.prediction.preregistered import preregister as preregister
from kernelmem.double_descent.prediction.random_features import FeatureTheory as FeatureTheory
from kernelmem.double_descent.prediction.random_features import feature_theory as feature_theory
from kernelmem.double_descent.prediction.score import PredictionScore as PredictionScore
from kernelmem.double_descent.prediction.score import score_prediction as score_prediction
from kernelmem.double_descent.prediction.untrained_network import ridge_of_time as ridge_of_time
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
