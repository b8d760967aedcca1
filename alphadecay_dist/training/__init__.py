"""The trainer: one concern a file, over the rooms before it."""
