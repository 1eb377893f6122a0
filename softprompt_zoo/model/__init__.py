"""Prompts in a model: attaching, the forward, generation."""
