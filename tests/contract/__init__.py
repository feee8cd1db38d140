"""The contract of both listeners, call by call, against a real broker and a real Redis."""
