"""The wire format of every topic, one file a topic."""
