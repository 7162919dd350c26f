"""Bytes that survive: whole files or none, and weights without code in them."""
