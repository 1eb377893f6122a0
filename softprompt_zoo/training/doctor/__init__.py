"""What a look at a model, or at a run, finds: findings as values, which the command `doctor` prints."""
