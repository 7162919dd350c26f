"""Ledger of a recorded run: the change of the outputs as a sum of contributions.

- ``ledger.py``: the function and its options;
- ``result.py``: the result;
- ``sweep_setup.py``: inputs that both sweeps share;
- ``backward_sweep.py``: contributions of examples and steps, with adjoints that are dense or kept as factors;
- ``grouped_sweep.py``: contributions of groups and layers;
- ``averaged_weights.py``: the last segment of the path if averaged weights are explained.
"""
