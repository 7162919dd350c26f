"""Per-example parameter derivatives: capture what a forward pass does, and keep tangents in factored form.

``prepare`` makes a private copy of the user's model; ``capture`` runs it and meets every operation that uses a
parameter; a rule (one a file: ``linear``) keeps that use in factored form; ``dense`` holds the Jacobian of the parameters
that no rule covers; ``features`` contracts factored tangents into kernel blocks.
"""
