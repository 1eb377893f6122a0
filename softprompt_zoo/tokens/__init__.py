"""Virtual tokens as values, and the shapes of layers; knows no model."""
