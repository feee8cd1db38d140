"""The stock in Redis: the fold of the decision log, changed by one atomic Lua call a chunk."""
