"""Recomputing what the system says of itself from its logs."""

from pipeline.audit.report import Check, Report
from pipeline.audit.run import CanNotAudit, audit

__all__ = ["CanNotAudit", "Check", "Report", "audit"]
