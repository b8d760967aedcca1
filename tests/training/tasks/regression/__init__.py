"""A task as somebody else would add it: linear regression on numbers that are drawn as they are needed."""
