"""The eleven promises, with a capsule in every layer on all models, and with one in front on a model of each kind."""

from softprompt_zoo.testing import conformance_suite

TestDeep = conformance_suite("capt")
TestShallow = conformance_suite("capt", {"deep": False}, ["llama", "bert", "t5"])
