"""A store for very many prompts, restored by name; above `model`."""
