"""Saved prompts on the Hugging Face Hub: fetched by the name of their repository, and pushed."""
