"""The exact ledger: what a network learned on the way from its first weights to its last, as a sum over examples."""
