"""Bounds on error rates: held-out, online, and from the length of a description (Occam)."""
