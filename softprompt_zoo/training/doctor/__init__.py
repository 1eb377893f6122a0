"""Inspect an environment, a model or a run; the findings are values, which the command `doctor` prints."""
