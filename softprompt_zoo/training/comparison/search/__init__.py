"""A search with Optuna for the rate, length and start of each candidate, in one or several processes."""
