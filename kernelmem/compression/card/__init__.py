"""Card: one file with a quantized network and the labels given it."""
