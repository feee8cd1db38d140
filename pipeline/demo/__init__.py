"""`seckill demo`: sells a product to a crowd over HTTP, as an ordinary client of the system."""
