"""The eleven promises: as in the paper on every model, and the other networks on one model of each kind."""

from softprompt_zoo.testing import conformance_suite

ONE_OF_EACH = ["llama", "bert", "t5"]

TestShared = conformance_suite("residual", {"bottleneck_size": 8})
TestPapersStart = conformance_suite("residual", {"gain": 1.0, "net": "mlp2", "activation": "tanh"}, ONE_OF_EACH)
TestSeparate = conformance_suite("residual", {"shared": False, "layer_norm": False, "bottleneck_size": 4}, ONE_OF_EACH)
TestTransformer = conformance_suite("residual", {"net": "transformer", "bottleneck_size": 8}, ONE_OF_EACH)
