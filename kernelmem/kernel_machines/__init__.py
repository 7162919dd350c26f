"""Kernel machines: exact leave-one-out of kernel ridge, and the ridge that it chooses."""
