"""Campaigns of bad input and bad luck; each case is drawn from a random generator and says how it ended."""
