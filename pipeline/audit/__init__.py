"""Recomputing what the system says of itself from its logs."""
