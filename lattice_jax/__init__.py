"""Language models whose long context lives in a small memory; docs/library.md shows what is exported."""

__version__ = "0.1.0"
