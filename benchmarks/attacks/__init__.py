"""Campaigns of bad input and failures; each case is drawn from a random generator and reports how it ended."""
