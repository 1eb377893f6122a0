"""The eleven promises, with the reference's gates and with PEFT's."""

from softprompt_zoo.testing import conformance_suite

TestHeadGates = conformance_suite("llama_adapter")
TestLayerGates = conformance_suite("llama_adapter", {"gate": "layer", "num_layers_from_top": 1})
