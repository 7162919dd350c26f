"""Theory of double descent. Every curve is a :class:`Curve`; the functions ``simulate_*`` check it by simulation.

Model-wise (number of features)
    gaussian_features_curve     least squares, p of d Gaussian features: exact for every n (Belkin, Hsu, Xu 2020)
    isotropic_curve             ridge, p = γ n isotropic features: limit (Hastie et al. 2022)
    optimal_ridge_curve         the same at the optimal ridge: no peak
    misspecified_curve          the same if the features carry part of the signal
    feature_curve               ridge on random features of any kernel, population or pool: limit (Simon et al. 2023)
    sphere_features_curve       ridge on random neurons, data on a sphere: limit (Mei and Montanari 2022)
Sample-wise (number of training examples)
    gaussian_samples_curve      least squares, Gaussian features: exact for every n
    learning_curve              kernel ridge from the spectrum of the kernel, population or pool: limit (Simon et al. 2021)
Ridge-wise
    ridge_curve                 the same for each ridge
Epoch-wise (training time)
    gradient_flow_curve         isotropic features: limit (Ali, Kolter, Tibshirani 2019)
    superposition_curve         features of several scales, n much larger than p (Heckel and Yilmaz 2021)
    gradient_descent_curve      gradient descent on a fixed design: exact
Bounds and estimates
    universal_lower_bound       lower bound for any least-squares fit with label noise (Holzmüller 2021)
    estimate_risk               GCV and leave-one-out, from training data alone
    flip_noise, error_bound     flipped labels as noise of squared error; error rate bounded by squared error

Asymptotic curves assume Gaussian features. On real data their error can exceed any standard error; smooth kernels without a
ridge are the hard case (measured in :func:`learning_curve` and its tests).

Files: curve.py (Curve, Simulation), gaussian_features.py, isotropic.py, sphere_features.py, gradient_flow.py,
gradient_descent.py, risk_estimates.py, kernel_ridge/ (curves from a spectrum).
"""

from kernelmem.double_descent.theory.curve import Curve as Curve
from kernelmem.double_descent.theory.curve import Simulation as Simulation
from kernelmem.double_descent.theory.curve import simulate as simulate
from kernelmem.double_descent.theory.gaussian_features import gaussian_features_curve as gaussian_features_curve
from kernelmem.double_descent.theory.gaussian_features import gaussian_samples_curve as gaussian_samples_curve
from kernelmem.double_descent.theory.gaussian_features import simulate_gaussian_features as simulate_gaussian_features
from kernelmem.double_descent.theory.gaussian_features import universal_lower_bound as universal_lower_bound
from kernelmem.double_descent.theory.gradient_descent import gradient_descent_curve as gradient_descent_curve
from kernelmem.double_descent.theory.gradient_descent import gradient_descent_weights as gradient_descent_weights
from kernelmem.double_descent.theory.gradient_flow import equalizing_learning_rates as equalizing_learning_rates
from kernelmem.double_descent.theory.gradient_flow import gradient_flow_curve as gradient_flow_curve
from kernelmem.double_descent.theory.gradient_flow import simulate_gradient_flow as simulate_gradient_flow
from kernelmem.double_descent.theory.gradient_flow import superposition_curve as superposition_curve
from kernelmem.double_descent.theory.isotropic import isotropic_curve as isotropic_curve
from kernelmem.double_descent.theory.isotropic import misspecified_curve as misspecified_curve
from kernelmem.double_descent.theory.isotropic import optimal_ridge_curve as optimal_ridge_curve
from kernelmem.double_descent.theory.isotropic import polynomial_signal_fraction as polynomial_signal_fraction
from kernelmem.double_descent.theory.isotropic import simulate_isotropic as simulate_isotropic
from kernelmem.double_descent.theory.kernel_ridge.curves import feature_curve as feature_curve
from kernelmem.double_descent.theory.kernel_ridge.curves import learnabilities as learnabilities
from kernelmem.double_descent.theory.kernel_ridge.curves import learning_curve as learning_curve
from kernelmem.double_descent.theory.kernel_ridge.curves import ridge_curve as ridge_curve
from kernelmem.double_descent.theory.kernel_ridge.simulate import simulate_features as simulate_features
from kernelmem.double_descent.theory.kernel_ridge.simulate import simulate_learning as simulate_learning
from kernelmem.double_descent.theory.kernel_ridge.spectral_task import FlipNoise as FlipNoise
from kernelmem.double_descent.theory.kernel_ridge.spectral_task import SpectralTask as SpectralTask
from kernelmem.double_descent.theory.kernel_ridge.spectral_task import error_bound as error_bound
from kernelmem.double_descent.theory.kernel_ridge.spectral_task import flip_noise as flip_noise
from kernelmem.double_descent.theory.kernel_ridge.spectral_task import pool_task as pool_task
from kernelmem.double_descent.theory.kernel_ridge.spectral_task import population_task as population_task
from kernelmem.double_descent.theory.risk_estimates import RiskEstimate as RiskEstimate
from kernelmem.double_descent.theory.risk_estimates import estimate_risk as estimate_risk
from kernelmem.double_descent.theory.sphere_features import ActivationMoments as ActivationMoments
from kernelmem.double_descent.theory.sphere_features import activation_moments as activation_moments
from kernelmem.double_descent.theory.sphere_features import simulate_sphere_features as simulate_sphere_features
from kernelmem.double_descent.theory.sphere_features import sphere_features_curve as sphere_features_curve
