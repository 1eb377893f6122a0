"""PEFT's own tests of prompts, run against this library: the parts of `peft_tests.py`."""
