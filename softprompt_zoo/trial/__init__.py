"""A model is tried before it is changed: its stacks, the ways in, and whether prompts are right on it."""
