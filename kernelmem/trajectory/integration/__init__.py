"""Mean tangent of a step by adaptive quadrature.

- ``quadrature.py``: Gauss-Legendre rules, and accuracy options;
- ``step_integral.py``: panels, residuals, refinement, mean tangents;
- ``node_schedule.py``: number of nodes for the next step;
- ``kinks.py``: kinks of piecewise linear networks along a step.
"""
