"""Everything of the flash sale but the stream processors: rules, wire formats, stock, ingress, local stack."""

__version__ = "0.1.0"
