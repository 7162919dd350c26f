"""The network's own kernels: the empirical neural tangent kernel, and the slow definition that it is held against."""
