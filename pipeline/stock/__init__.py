"""The stock in Redis: a fold of the decision log, changed by one atomic Lua call per chunk."""
