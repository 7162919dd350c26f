"""Parameter groups: forms in which the tangents of some parameters are kept and contracted.

base         Group: what every form provides
outer        sums of outer products (linear layers, convolutions): five forms of contraction
table        embedding tables, by pairs of positions with the same token
mixed        parameters that are used in several ways
directions   directions in output space along which outputs are differentiated, and targets
float32      library of float32 products, chosen by processor
gemm         large matrix products A Bᵀ, symmetric ones at half the cost
"""
