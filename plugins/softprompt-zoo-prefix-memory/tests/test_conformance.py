"""The promises: a memory per head on every model, and the other options on one model of each kind."""

from softprompt_zoo.testing import conformance_suite

SHARED = {"num_virtual_tokens": 0, "share_heads": True, "feature_map": "elu+1"}

TestPrefixMemory = conformance_suite("prefix_memory")
TestShared = conformance_suite("prefix_memory", SHARED, ["llama", "bert", "t5"], longer=SHARED)
