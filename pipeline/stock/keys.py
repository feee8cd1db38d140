"""The names of the Redis keys. All keys of a partition share the hash tag `{pN}`, so a Redis Cluster can hold them."""


def cursor(partition: int) -> str:
    return f"seckill:{{p{partition}}}:cursor"


def products(partition: int) -> str:
    return f"seckill:{{p{partition}}}:products"


def product(partition: int, product_id: str) -> str:
    return f"seckill:{{p{partition}}}:product:{product_id}"


def buyers(partition: int, product_id: str) -> str:
    return f"seckill:{{p{partition}}}:buyers:{product_id}"
