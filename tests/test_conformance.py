"""Every registered method on every tiny model: the registry is the matrix."""

import softprompt_zoo as zoo
from softprompt_zoo.testing import conformance_suite, tiny_tokenizer

EXAMPLES = [("w11 w12", "w21"), ("w13", "w22 w23"), ("w14 w15", "w24")]
CONTEXT = {"num_virtual_tokens": 0, "template": "w5 {input} w6 {target} w7", "tokenizer": tiny_tokenizer()}
OPTIONS = {
    "cpt": {"options": {**CONTEXT, "examples": EXAMPLES[:2]}, "longer": {"examples": EXAMPLES}},
    "multitask_prompt_tuning": {"options": {"num_tasks": 3, "rank": 2}},
}
"""What a method cannot do without, by its name."""

for _method in zoo.list_methods():
    globals()[f"Test_{_method}"] = conformance_suite(_method, **OPTIONS.get(_method, {}))
