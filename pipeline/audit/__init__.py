"""Recomputes every decision from the logs and cross-checks topics, Redis and orders."""

from pipeline.audit.report import Check, Report
from pipeline.audit.run import CannotAudit, audit

__all__ = ["CannotAudit", "Check", "Report", "audit"]
