"""The real log: Apache Kafka by aiokafka. The only package that imports aiokafka.

What aiokafka does by default and we must not have: resets to the latest offset, commits on its own,
fetches right after an assignment, retries a commit under the next generation.
"""

from topics.kafka.log import KafkaLog
from topics.kafka.security import Security

__all__ = ["KafkaLog", "Security"]
