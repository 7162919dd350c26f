"""What everything stands on: one exception tree, the checks at the border, the one door to torch.func."""
