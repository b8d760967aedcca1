"""Measure, map and write: what AlphaDecay does to a model and its optimizer."""
