"""Telemetry of the spectral-update condition: nuclear ranks of gradients, stable ranks of activations."""
