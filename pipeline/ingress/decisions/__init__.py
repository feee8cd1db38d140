"""Finds the decision on a request: in memory, by waiting for it, or in the decision log."""
