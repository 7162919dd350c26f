"""Memorization in language models: losses of tokens, canaries, extraction, membership, repeated text.

- ``documents``: ragged token ids.
"""
