"""Which weights of a model are tuned, and their param groups. Knows models, but no ranks."""
