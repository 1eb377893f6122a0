"""Soft prompts in vLLM: every request names its user's prompt out of a bank.

`register` tells vLLM of the connector; `connector` is what vLLM calls. In the scheduler's process `scheduling` decides
what a request gets, with `requests` making room in front of its text; in the workers `loading` puts keys and values
into the paged cache, with `tables` keeping some ready. `catalog` looks prompts up, `settings` reads the deployment's
configuration and refuses what cannot work, `checkpoint` compares the bank with the model that is served.
"""
