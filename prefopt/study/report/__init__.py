"""The report of a comparison: a page that opens from disk, tables for papers, numbers for programs."""

from prefopt.study.report.page import write_report
from prefopt.study.report.text_tables import show

__all__ = ["show", "write_report"]
