"""The HTTP layer: listeners, request bodies, handlers, problem documents."""
