"""Prompts on disk, in our format and in those of others; above `prompt`, without a model that has some."""
