"""Why trained networks differ: bias and variance, variance components, effective numbers of parameters.

::

    bias_variance.py          decompose_squared, decompose_cross_entropy: bias and variance of K trained networks
    factorial.py              factorial_design: seeds of initialization x data x label noise x batch order
    anova.py                  variance_components: variance due to each of them and to their interactions
    effective_parameters.py   effective_parameters of a linear smoother; kernel_smoother, feature_smoother
    run_smoother.py           run_smoother: the linear smoother of a recorded run with squared loss

``examples/variance_of_training.py`` uses all of them.
"""

from kernelmem.double_descent.variance.anova import FACTORS as FACTORS
from kernelmem.double_descent.variance.anova import Component as Component
from kernelmem.double_descent.variance.anova import VarianceComponents as VarianceComponents
from kernelmem.double_descent.variance.anova import variance_components as variance_components
from kernelmem.double_descent.variance.bias_variance import Decomposition as Decomposition
from kernelmem.double_descent.variance.bias_variance import decompose_cross_entropy as decompose_cross_entropy
from kernelmem.double_descent.variance.bias_variance import decompose_squared as decompose_squared
from kernelmem.double_descent.variance.effective_parameters import EffectiveParameters as EffectiveParameters
from kernelmem.double_descent.variance.effective_parameters import effective_parameters as effective_parameters
from kernelmem.double_descent.variance.effective_parameters import feature_smoother as feature_smoother
from kernelmem.double_descent.variance.effective_parameters import kernel_smoother as kernel_smoother
from kernelmem.double_descent.variance.factorial import Cell as Cell
from kernelmem.double_descent.variance.factorial import FactorialDesign as FactorialDesign
from kernelmem.double_descent.variance.factorial import factorial_design as factorial_design
from kernelmem.double_descent.variance.run_smoother import RunSmoother as RunSmoother
from kernelmem.double_descent.variance.run_smoother import run_smoother as run_smoother
