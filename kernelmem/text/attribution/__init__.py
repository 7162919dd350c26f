"""Documents that taught a language model what it emits."""
