"""Risk of kernel ridge regression and random features from the spectrum of a kernel (eigenframework).

::

    spectral_task.py    population_task, pool_task: eigenvalues and target power; flip_noise, error_bound
    equations.py        self-consistent equations and risks, population and finite pool
    curves.py           learning_curve (n), feature_curve (k), ridge_curve (ridge), learnabilities
    simulate.py         simulate_learning, simulate_features: the same by simulation

The public names are exported by :mod:`kernelmem.double_descent.theory`.
"""
