"""The health check before training: ranks report who they are, measure, and judge all findings alike."""
