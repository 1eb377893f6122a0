"""Every registered method on every tiny model: the registry is the matrix."""

import softprompt_zoo as zoo
from softprompt_zoo.testing import conformance_suite

OPTIONS = {"multitask_prompt_tuning": {"num_tasks": 3, "rank": 2}}

for _method in zoo.list_methods():
    globals()[f"Test_{_method}"] = conformance_suite(_method, OPTIONS.get(_method))
