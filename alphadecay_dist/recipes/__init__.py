"""Recipes: the demo and every published run."""
