"""Recomputing what the system says of itself from its logs."""

from pipeline.audit.report import Check, Report
from pipeline.audit.run import CannotAudit, audit

__all__ = ["CannotAudit", "Check", "Report", "audit"]
