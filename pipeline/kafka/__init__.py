"""Everything that talks to Kafka: topics, producer, consumers, and reading a log by offset."""
