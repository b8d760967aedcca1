"""From documents to batches: sources, tokens, order, exact resume."""
