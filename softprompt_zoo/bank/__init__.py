"""Very many prompts in one store, restored by name; above `model`."""
