"""All that is one engine's own: where it keeps weights, param groups and the update boundary."""
