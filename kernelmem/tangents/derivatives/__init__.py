"""Derivatives of a prepared model with respect to its parameters.

jacobian   the dense Jacobian: by definition, and vectorized over examples
jvp        products J u and Jᵀ w without the Jacobian
"""
