"""How virtual tokens act on a model in one forward; above `backbone`, and knows no method."""
