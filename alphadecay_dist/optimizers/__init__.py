"""Optimizers that need whole matrices: Muon, for weights that lie whole or in pieces on ranks."""
