"""The wire format of every topic: `models.py` describes it, one file a topic encodes and decodes it."""
