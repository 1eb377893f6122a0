"""The parts of `peft_tests.py`: PEFT's own tests of prompts, run against this library."""
