"""Planted examples: exposure, and lower bounds on privacy loss."""
