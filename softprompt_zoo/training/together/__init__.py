"""Several trainings of one method in shared batches on one frozen model, each with the result it has alone."""
