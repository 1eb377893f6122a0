"""A model is tried before it is changed."""
