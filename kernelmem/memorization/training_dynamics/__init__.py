"""Scores of one training run: outputs and gradients along it."""
