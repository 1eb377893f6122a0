"""Comparing methods on the same data: what is tried, how each is trained and measured, and the report."""
