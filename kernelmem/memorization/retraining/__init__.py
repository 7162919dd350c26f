"""Memorization and influence by retraining on random subsets (Feldman and Zhang 2020)."""
