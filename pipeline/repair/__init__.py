"""Compares one product in Redis with the decision log, and mends Redis from it."""

from pipeline.repair.differences import RepairReport
from pipeline.repair.history import CannotRepair
from pipeline.repair.run import repair

__all__ = ["CannotRepair", "RepairReport", "repair"]
