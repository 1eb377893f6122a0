"""Several trainings of one method in one batch, on one frozen model: each gives what it gives alone."""
