"""Checkpoints on disk: one directory per step, whole once its manifest is there."""
