"""Documents: ragged token ids."""
