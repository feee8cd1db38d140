"""The HTTP entrance: listeners, bodies, calls, problem documents."""
