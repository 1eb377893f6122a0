"""The eleven promises; with noise, all but the sixth, which needs two runs of one step to be the same."""

from softprompt_zoo.testing import conformance_suite

ALL = range(1, 12)

TestQuiet = conformance_suite("smop")
TestNoise = conformance_suite(
    "smop", {"num_prompts": 3}, ["llama", "bert", "t5"], promises=[number for number in ALL if number != 6]
)
TestSumOfTwo = conformance_suite("smop", {"num_prompts": 3, "num_chosen": 2, "noise": 0.0}, ["llama", "bert", "t5"])
