"""The eleven promises, with IDPG's sum on every model, and with LoPA's gate on one model of each kind."""

from softprompt_zoo.testing import conformance_suite

GATE = {"gate_rank": 2, "bottleneck_size": 8}

TestSum = conformance_suite("idpg")
TestGate = conformance_suite("idpg", GATE, ["llama", "bert", "t5"])
