"""Verification of predictors as codes."""
