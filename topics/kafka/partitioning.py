"""Which partition a key belongs to, as every Kafka client has it."""

from functools import lru_cache

from aiokafka.partitioner import murmur2


@lru_cache(maxsize=8192)  # keys repeat (a few per tenant), and the hash is in Python
def _hash(key: bytes) -> int:
    return int(murmur2(key)) & 0x7FFFFFFF


def partition_of(key: bytes, count: int) -> int:
    """The partition, of `count`, that Java's default partitioner (murmur2) chooses for the key."""
    return _hash(key) % count
