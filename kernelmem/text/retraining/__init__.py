"""Many small language models trained in one batch: counterfactual memorization, capacity."""
