"""Audit of a language model: membership, extraction, canaries, fine-tune change, and a redacted report."""
