"""Writes purchases to the command log."""
