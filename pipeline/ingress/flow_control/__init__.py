"""Decides which purchases may go into the log, so that what is accepted is decided soon."""
