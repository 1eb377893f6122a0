"""The eleven promises, with a capsule in every layer on every model, and with one in front on one of each kind."""

from softprompt_zoo.testing import conformance_suite

TestDeep = conformance_suite("capt")
TestShallow = conformance_suite("capt", {"deep": False}, ["llama", "bert", "t5"])
