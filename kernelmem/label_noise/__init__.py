"""How much of what was learned is memorized: label noise that is known, and how well a score finds it."""
