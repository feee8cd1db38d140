"""The stream processors: thin Faust agents that call `pipeline`. One file per agent, named after what it consumes."""
