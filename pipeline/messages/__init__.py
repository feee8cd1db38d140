"""The wire format of every topic: `models.py` describes it; one module per topic encodes and decodes it."""
