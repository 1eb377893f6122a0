"""Prompts on a model: its class, forward, generation and losses; above `files` and `trial`."""
