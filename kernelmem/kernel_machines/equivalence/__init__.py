"""Comparison of a trained network with the kernel machines of its run."""
