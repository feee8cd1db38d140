"""The way of a purchase into the command log."""
