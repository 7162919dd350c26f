"""Account of the labels in bits."""
