"""What both listeners promise, call by call, against a real broker and a real Redis."""
