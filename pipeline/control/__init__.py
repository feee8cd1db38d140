"""The control topic: read by every process. It holds the changes of live settings and the states of the breakers."""
