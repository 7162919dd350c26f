"""Double descent: sweeps with intervals and controls, theory and predictions beside them, what the variance is made of."""
