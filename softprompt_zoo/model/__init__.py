"""Prompts in a model: its class, its forward, generation, losses; above `files` and `trial`."""
