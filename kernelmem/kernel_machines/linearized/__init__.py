"""Training of the linearized network in function space."""
