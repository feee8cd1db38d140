"""`seckill demo`: a whole sale with a real crowd, seen from outside; a client of the system like any other."""
