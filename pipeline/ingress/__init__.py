"""The HTTP side: takes purchases into the command log, and tells buyers what was decided."""
