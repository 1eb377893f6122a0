"""Virtual tokens as values, and the shapes of layers; independent of any model."""
