"""Which weights of a model are tuned, and their param groups. Knows a model and no rank."""
