"""Headings in the help of commands with many options."""

DATA = "Data"
OBJECTIVE = "What is learned and measured"
CANDIDATES = "What is compared"
TRAINING = "Training"
MEMORY = "Memory"
RUN = "The run"
