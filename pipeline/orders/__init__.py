"""The orders topic as its consumers see it."""
