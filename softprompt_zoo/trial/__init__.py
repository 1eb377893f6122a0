"""Tests a model before it is changed: its stacks, the ways to reach them, and whether prompts work on it."""
