"""A single prompt, apart from any model: its parts, and whether it fits a model; above `registry` and `sites`."""
