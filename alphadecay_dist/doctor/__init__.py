"""The health check before training: ranks say who they are, measure, and judge all findings alike."""
