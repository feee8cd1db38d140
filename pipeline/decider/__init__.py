"""The decider of one partition, and the protocol that makes it safe (docs/protocol.md)."""

from pipeline.decider.decider import Decider
from pipeline.decider.synchronise import LogsDisagree

__all__ = ["Decider", "LogsDisagree"]
