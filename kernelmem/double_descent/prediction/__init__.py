"""Learning curves predicted before training.

predict.py            predict_curve: from the NTK of an untrained network on a data pool
preregistered.py      preregister: predict, save, train, compare
random_features.py    feature_theory: expected error of a random-feature sweep
score.py              score_prediction: relative error and rank correlation with measured errors
untrained_network.py  NTK of one untrained network and its expected errors; ridge_of_time
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
