"""The names of the Redis keys. A partition's keys share the hash tag `{pN}`, so they are in one Redis Cluster slot.

A lock's keys are in another one: a job that holds a lock cannot write to a Redis Cluster.
"""

from typing import NamedTuple


class Keys(NamedTuple):
    """Keys that begin with `prefix`; systems that share a Redis need different ones."""

    prefix: str = "seckill"

    def cursor(self, partition: int) -> str:
        return self.any(partition, "cursor")

    def log(self, partition: int) -> str:
        """Contains the identity of the log that the partition was decided from (pipeline/kafka/log_identity.py)."""
        return self.any(partition, "log")

    def products(self, partition: int) -> str:
        return self.any(partition, "products")

    def cleaned(self, partition: int) -> str:
        """A hash with a field for each product that is cleaned up."""
        return self.any(partition, "cleaned")

    def product(self, partition: int, product_id: str) -> str:
        return self.any(partition, f"product:{product_id}")

    def buyers(self, partition: int, product_id: str) -> str:
        return self.any(partition, f"buyers:{product_id}")

    def lock(self, name: str) -> str:
        """Who holds this lock; the only key that expires."""
        return f"{self.prefix}:lock:{name}"

    def lock_token(self, name: str) -> str:
        """The newest token of this lock; it stays when the lock is released."""
        return f"{self.prefix}:lock:{name}:token"

    def any(self, partition: int, rest: str) -> str:
        """With "*", a pattern for all keys of the partition: nothing else in it is special to Redis."""
        return f"{self.prefix}:{{p{partition}}}:{rest}"
