"""Fresh processes for code: each is forked from a process that has done nothing but the slow imports."""

import json
import subprocess
import sys

SERVER = """
import json, os, sys
import torch
import softprompt_zoo.testing.subject
torch.set_num_threads(1)
for line in sys.stdin:
    code, folder, path, output = json.loads(line)
    child = os.fork()
    if child == 0:
        for descriptor in (1, 2):
            os.dup2(os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND), descriptor)
        os.chdir(folder)
        sys.path[:0] = path
        os.environ.pop("SOFTPROMPT_ZOO_PLUGINS", None)
        exec(compile(code, "<a fresh process>", "exec"), {"__name__": "__main__"})
        sys.stdout.flush()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class FreshProcesses:
    """A runner that gives each piece of code a new process."""

    def __init__(self):
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, code, folder, *path):
        """Run code in a folder, with the packages in the folders `path` importable; return what it printed."""
        output = folder / "output-of-a-fresh-process"
        output.unlink(missing_ok=True)
        self.server.stdin.write(json.dumps([code, str(folder), [str(place) for place in path], str(output)]) + "\n")
        self.server.stdin.flush()
        status = int(self.server.stdout.readline())
        assert status == 0, output.read_text("utf-8")
        return output.read_text("utf-8")

    def end(self):
        """End the process from which the others are forked."""
        self.server.communicate()
