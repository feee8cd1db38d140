"""Everything that talks to Kafka: topics, producer, consumers, reading a log by offset."""
