"""The flash sale without its stream processors: rules, wire formats, stock, ingress, local stack."""

__version__ = "0.1.0"
