"""Files: our own and PEFT's. They do not know each other."""
