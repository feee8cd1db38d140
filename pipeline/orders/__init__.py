"""The orders topic from a consumer's view."""
