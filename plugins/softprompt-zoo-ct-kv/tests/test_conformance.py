"""The promises, with examples given as token ids, and as texts."""

from softprompt_zoo.testing import conformance_suite, tiny_tokenizer

WORDS = {"template": "w5 {input} w6 {target} w7", "tokenizer": tiny_tokenizer()}
TWO = [("w11 w12", "w21"), ("w13", "w22 w23")]


def texts(*more):
    return {"examples": [*TWO, *more], **WORDS}


TestIds = conformance_suite("ct_kv")
TestTexts = conformance_suite(
    "ct_kv",
    {**texts(), "num_virtual_tokens": 0},
    ["llama", "gpt2", "bert"],
    longer=texts(("w14", "w24")),
)
