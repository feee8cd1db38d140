"""The exceptions of this project form one tree. The base class tells the caller what to do.

    SeckillError
        Unavailable         a dependency does not answer; try again later
            KafkaUnavailable
            RedisUnavailable
        InvalidRecord       a record does not have the form of its topic; report it and skip it
        LockLost            a job no longer holds its lock and must not write
        OperatorError       a command or process cannot start or finish; the message says what to fix
        Fatal               a process that writes cannot keep its guarantees and must end; the message says why
                            (the ingress only reads Redis, so it refuses what depends on the cause instead)

An exception that only one module raises is defined there, below one of these.
"""


class SeckillError(Exception):
    """Base of all exceptions of this project. The message is for people."""


class Unavailable(SeckillError):
    """A dependency did not answer, or not in time. A later try may succeed."""


class KafkaUnavailable(Unavailable):
    """Kafka did not answer, or a read made no progress for too long."""


class RedisUnavailable(Unavailable):
    """Redis did not answer, or cannot serve now. The call may or may not have taken effect."""


class InvalidRecord(SeckillError, ValueError):
    """A record that does not have the form of its topic. The message names the field."""


class LockLost(SeckillError):
    """A job no longer holds the lock that it needs (pipeline/lock.py). What it was about to write is not written."""


class OperatorError(SeckillError):
    """A command or process cannot start or finish. The message says what to fix, one line per fault."""


class Fatal(SeckillError):
    """A process that writes must end, because it cannot keep its guarantees. The message says why, in one line."""
