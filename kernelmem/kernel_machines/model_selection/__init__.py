"""Leave-one-out of kernel ridge, and the choice of the ridge."""
