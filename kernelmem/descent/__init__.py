"""Double descent: exact and asymptotic curves, and the simulations that check them."""
