"""The names of the Redis keys. All keys of a partition share the hash tag `{pN}`, so a Redis Cluster can hold them."""

from typing import NamedTuple


class Keys(NamedTuple):
    """Under one prefix; systems that share a Redis have one each."""

    prefix: str = "seckill"

    def cursor(self, partition: int) -> str:
        return self.any(partition, "cursor")

    def log(self, partition: int) -> str:
        """Holds which log the partition was decided from (pipeline/kafka/log_identity.py)."""
        return self.any(partition, "log")

    def products(self, partition: int) -> str:
        return self.any(partition, "products")

    def product(self, partition: int, product_id: str) -> str:
        return self.any(partition, f"product:{product_id}")

    def buyers(self, partition: int, product_id: str) -> str:
        return self.any(partition, f"buyers:{product_id}")

    def any(self, partition: int, rest: str) -> str:
        """With "*" a pattern of all keys of the partition: nothing else in it is special to Redis."""
        return f"{self.prefix}:{{p{partition}}}:{rest}"
