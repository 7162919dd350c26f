"""Membership inference: attacks, and their rates with intervals."""
