"""Entropy coder: rANS streams of symbols with integer frequencies."""
