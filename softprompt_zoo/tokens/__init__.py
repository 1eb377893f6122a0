"""Virtual tokens as values, and the shapes they have; nothing here knows a model."""
