"""Prompts on disk, in our format and in others'; above `prompt`, without a prompted model."""
