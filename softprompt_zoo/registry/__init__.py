"""Which methods there are, and the calls of their hooks; above `methods`, none of which it names."""
