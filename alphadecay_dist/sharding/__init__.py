"""Pieces and owners: which rank holds what of a weight, who analyses it, and how it gets there."""
