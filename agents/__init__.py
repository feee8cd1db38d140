"""The stream processors: thin Faust bodies that call `pipeline`. One file an agent, named for what it consumes."""
