"""What rows of data are to a model and how it is scored on them: one file per kind, all of them an `Objective`."""
