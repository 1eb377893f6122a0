"""What a bank of prompts is made of: records, the stores that keep them, and the cache of prompts that are ready."""
