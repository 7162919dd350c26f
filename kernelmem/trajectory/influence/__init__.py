"""Influence of training examples on the trained network: exact derivative, and gradient-product baselines.

- ``influence.py``: the functions and their result;
- ``unrolled.py``: reverse-mode derivative of the recorded training;
- ``training_program.py``: the recorded run as a differentiable program in float64;
- ``batch_gradient.py``: the gradient of a batch with its graph, and its Hessian-vector products;
- ``batch_norm.py``: differentiable running statistics;
- ``replayed.py``: the recorded training again, with other weights of the examples;
- ``replay_check.py``: agreement of influences with replays without examples;
- ``baselines.py``: TracIn and last checkpoint.
"""
