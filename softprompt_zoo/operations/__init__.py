"""What is done with trained prompts: load, export, fold, blend, cut, compare, inspect; above `model`."""
