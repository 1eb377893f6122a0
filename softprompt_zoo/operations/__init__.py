"""Operations on trained prompts: load, export, fold, blend, truncate, compare, inspect; above `model`."""
