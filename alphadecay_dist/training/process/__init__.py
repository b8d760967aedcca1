"""This process among the others: ranks, launchers, signals, exit codes, the folder's lock."""
