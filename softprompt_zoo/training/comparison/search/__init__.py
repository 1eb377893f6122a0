"""A search for the rate, length and start of each candidate, by Optuna, in one process or several."""
