"""Soft prompts in vLLM: every request names its user's prompt in a bank.

`register` registers the connector with vLLM, which calls `connector`. In the scheduler's process, `scheduling` decides
what a request gets, and `requests` makes room in front of its text; in the workers, `loading` writes keys and values
into the paged cache, and `tables` caches some. `catalog` looks up prompts, `settings` reads the deployment's
configuration and refuses what cannot work, `checkpoint` compares the bank with the served model.
"""
