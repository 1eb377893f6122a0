"""Every registered method on every tiny model: the registry is the matrix."""

import softprompt_zoo as zoo
from softprompt_zoo.testing import conformance_suite

for _method in zoo.list_methods():
    globals()[f"Test_{_method}"] = conformance_suite(_method)
