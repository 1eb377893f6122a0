"""Which methods there are, built in and installed, and the calls of their hooks."""
