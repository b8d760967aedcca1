"""Checkpoints on disk: a directory a step, whole once its manifest is there."""
