"""One self-contained HTML page that says what was found, how sure it is, and how to redo it."""

from __future__ import annotations

from landscape.report.page import write_report

__all__ = ["write_report"]
