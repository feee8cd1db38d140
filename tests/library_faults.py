"""Faults inside aiokafka and Faust that only their private parts can cause.

On their own, they occur once in thousands of hours; no other module of the tests reaches into a library.
"""

from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.consumer.fetcher import OffsetResetStrategy
from aiokafka.errors import KafkaError


def skip_sequence_numbers(producer: AIOKafkaProducer, place: TopicPartition, count: int) -> None:
    """Leave the gap that an idempotent producer has after it has lost a batch for good."""
    producer._txn_manager.increment_sequence_number(place, count)


def fail_for_good(producer: AIOKafkaProducer, error: KafkaError) -> None:
    """Have the producer refuse all records from now on, as after a fatal error of its sender."""
    producer._message_accumulator.fail_all(error)


def forget_position(consumer: Any, place: TopicPartition) -> None:
    """Have Faust's consumer look up its position in this partition, as after a fetch out of range."""
    subscription = consumer._thread._consumer._subscription.subscription
    subscription.assignment.state_value(place).await_reset(OffsetResetStrategy.LATEST)
