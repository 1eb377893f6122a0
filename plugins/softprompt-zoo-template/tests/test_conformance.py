"""The eleven promises: a line for each set of options that changes what the hooks compute."""

from softprompt_zoo.testing import conformance_suite

TestTemplate = conformance_suite("template")
TestTemplateLoud = conformance_suite("template", {"volume": 3.0})
