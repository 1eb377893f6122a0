"""The first attach in a process imports nothing that only files, banks and other operations need."""

CODE = """
import sys
for name in [name for name in sys.modules if name.startswith(("softprompt_zoo", "peft"))]:
    del sys.modules[name]
import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
zoo.get_method("prefix_tuning")(tiny_model("llama"), num_virtual_tokens=2)
others = ("peft.", "softprompt_zoo.bank.", "softprompt_zoo.operations.", "softprompt_zoo.training.")
found = {name for name in sys.modules if name.startswith((*others, "softprompt_zoo.files."))}
assert found == {"softprompt_zoo.files.start_folders"}, found
"""


def test_attaching_imports_nothing_that_saves_or_reads(fresh_processes, tmp_path):
    fresh_processes.run(CODE, tmp_path)
