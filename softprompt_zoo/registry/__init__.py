"""Finding methods and calling their hooks; above `methods`, none of which it names."""
